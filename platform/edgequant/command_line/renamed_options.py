"""Options and keys of recipes that have another name now: refused with the new one. CHANGELOG.md lists them."""

from __future__ import annotations

from edgequant.command_line.given import Given
from edgequant.errors import UserError

EVALUATION = {
    "evaluation.measures": "evaluation.tasks",
    "evaluation.squad_shots": "evaluation.num_fewshot",
    "evaluation.join": "evaluation.wikitext_protocol",
}
DATASET = {"text": "dataset"}
TRAINING = {"training.distillation": "training.distillation_weight"}
QAT = {
    "quantization.start": "qat.init_from",
    "quantization.learned_scales": "qat.learnable_scales",
    "quantization.freeze_ranges": "qat.freeze_observers_at",
    "quantization.activation_delay": "qat.activation_quant_start",
    "quantization.teacher": "qat.distill_from",
    "quantization.qat_learning_rate": "qat.student_learning_rate",
    "quantization.lora_rank": "qat.lora_rank",
    "quantization.lora_alpha": "qat.lora_alpha",
    "quantization.sparsity": "qat.sparsity",
    "quantization.sparsity_pattern": "qat.sparsity_pattern",
    "quantization.observer": "calibration.observer",
    "quantization.calibration_sequences": "calibration.num_calibration_samples",
}
CONTROL = {"control": "adapt"}  # which trains one
PTQ = {
    "quantization.sequences": "calibration.num_calibration_samples",
    "quantization.sequence_length": "calibration.sequence_length",
    "quantization.batch_size": "calibration.batch_size",
    "quantization.precision": "calibration.precision",
    "quantization.offload": "calibration.offload",
    "quantization.observer": "calibration.observer",
    "quantization.activation_weighted": "ptq.activation_weighted",
    "quantization.damping": "ptq.dampening_frac",
    "quantization.act_order": "ptq.act_order",
    "quantization.refit_scales": "ptq.refit_scales",
    "quantization.alphas": "ptq.alphas",
    "quantization.smoothing": "ptq.smoothing_strength",
    "quantization.block_steps": "ptq.signround_steps",
    "quantization.block_learning_rate": "ptq.signround_learning_rate",
}
CORPUS = {
    "settings.near_duplicate": "settings.dedup_threshold",
    "settings.file_seconds": "settings.file_timeout_s",
    "settings.licence": "settings.license",
}
RENAMED = {
    "corpus": CORPUS,
    "baseline": EVALUATION,
    "evaluate": EVALUATION,
    "pipeline": EVALUATION | TRAINING,
    "finetune": EVALUATION | DATASET | TRAINING,
    "qat": EVALUATION | DATASET | TRAINING | QAT | CONTROL,
    "tune": EVALUATION | DATASET | TRAINING | QAT,
    "ptq": EVALUATION | DATASET | PTQ,
}


def refuse_renamed(workflow: str, given: Given) -> None:
    """Refuse an option, or a key of a recipe, that has another name now.

    Raises:
        UserError: names both.
    """
    renamed = RENAMED.get(workflow, {})
    if workflow != "push" and any(name == "revision" for name, _ in given.options):
        raise UserError(
            "option --revision is push's; a model of the hub is pinned by its name: --model OWNER/NAME@REVISION"
        )
    named = [("option", name) for name, _ in given.options]
    named += [(f"recipe {path}: key", name) for path, keys in given.recipes.items() for name in keys]
    for where, name in named:
        if name in renamed:
            raise UserError(f"{where} {name} is now called {renamed[name]}; write that instead")
