"""`ptq`: round a model to one or several schemes without training, and measure what that costs.

mlflow run . -e ptq
edgequant ptq --model FOLDER --scheme w4-g32,w8a8-static,bnb-nf4
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.settings import QuantizationSettings
from edgequant.workflows.inputs import check_text
from edgequant.workflows.measuring import QAT_MEASURES, headline

if TYPE_CHECKING:
    from edgequant.models import LoadedModel
    from edgequant.quantization.scheme import Scheme

CALIBRATION_LENGTH = 128  # tokens per calibration sequence


def ptq(
    *,
    model: str = "smollm2-135m",
    scheme: str = "w4a8-g32+emb4,q8_0,bnb-int8,bnb-nf4",
    method: Literal["rtn"] = "rtn",
    text: str = "disaster",
    quantization: QuantizationSettings = QuantizationSettings(),
    evaluation: EvaluationSettings = EvaluationSettings(
        measures=QAT_MEASURES, limit=200, latency_methods=("generate",)
    ),
    data_dir: str | None = None,
    output: str | None = None,
    register: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    experiment: str = "edgequant",
) -> None:
    """Post-training quantisation: the model and each of its schemes side by side, every checkpoint reloaded from disk.

    Args:
        model: short name, hub id, folder, .gguf file or MLflow URI of a floating-point model.
        scheme: one or several, separated by commas, e.g. w4-g32,w8a8-static,bnb-nf4.
        method: how integers are chosen: rtn rounds to the nearest.
        text: what static activation ranges are calibrated on.
        quantization: how static activation ranges are found.
        evaluation: what is measured and how.
        data_dir: folder with WikiText-2, BoolQ and SQuAD in their official formats (default: $EDGEQUANT_DATA).
        output: folder that receives the checkpoint, or one folder per scheme (default: outputs/ptq/<run id>).
        register: register each checkpoint as edgequant-<model> in the MLflow registry.
        device: auto, cpu, cuda or cuda:N.
        dtype: compute type while measuring: auto, float32, bfloat16 or float16.
        seed: order of the calibration text, draws of questions.
        experiment: MLflow experiment, unless `mlflow run` names one.
    """
    config = {
        key: asdict(value) if hasattr(value, "__dataclass_fields__") else value for key, value in locals().items()
    }
    schemes = check_configuration(model, scheme, text)

    from edgequant import models, tracking
    from edgequant.workflows.closing import print_closing
    from edgequant.workflows.inputs import evaluation_data, training_sequences
    from edgequant.workflows.measuring import measure
    from edgequant.workflows.quantized_training import run_folder

    with tracking.workflow_run("ptq", config, experiment=experiment) as run:
        loaded = models.load(model, dtype="float32", device=device)
        dtype = models.pick_dtype(dtype, str(loaded.model.device))
        data = evaluation_data(evaluation.measures, data_dir)
        calibration = training_sequences(text, loaded.tokenizer, CALIBRATION_LENGTH, data, data_dir, seed=seed)
        calibration = calibration[: quantization.calibration_sequences].to(loaded.model.device)
        with tracking.variant_run("baseline", model=loaded.source.name, scheme="none", phase="ptq"):
            floating = _cast(loaded.model, dtype)
            rows = {"none": measure(floating, loaded.tokenizer, data, evaluation)}
        for parsed in schemes:
            with tracking.variant_run("ptq", model=loaded.source.name, scheme=parsed.name, phase="ptq"):
                folder = _folder(output, parsed, schemes, run_folder("ptq", run.id))
                write_quantized(loaded, model, parsed, quantization, calibration, folder, dtype=dtype)
                reloaded = models.load(str(folder), device=device)
                rows[parsed.name] = measure(reloaded.model, reloaded.tokenizer, data, evaluation, checkpoint=folder)
                if register:
                    tags = {
                        "edgequant.model": loaded.source.name,
                        "edgequant.scheme": parsed.name,
                        "edgequant.variant": "ptq",
                    }
                    name = f"edgequant-{loaded.source.name}"
                    tracking.register_checkpoint(folder, name, metrics=rows[parsed.name], tags=tags)
        tracking.log_metrics(rows[schemes[0].name])
        table = [
            {
                "model": loaded.source.name,
                "variant": "baseline" if name == "none" else "ptq",
                "scheme": name,
                **headline(row),
            }
            for name, row in rows.items()
        ]
        print_closing(
            f"ptq: {loaded.source.name}", table, run, f"edgequant qat --model {model} --scheme {schemes[0].name}"
        )


def check_configuration(model: str, scheme: str, text: str) -> list[Scheme]:
    """Refuse what cannot work before anything heavy is imported.

    Raises:
        UserError: names the value and what was expected.
    """
    from edgequant import models
    from edgequant.quantization.scheme import check_group_sizes, parse_scheme

    parsed = [parse_scheme(name.strip()) for name in scheme.split(",")]
    check_text(text)
    models.resolve(model)
    for one in parsed:
        check_group_sizes(one, models.layer_inputs(model))
    return parsed


def write_quantized(
    loaded: LoadedModel,
    source: str,
    scheme: Scheme,
    quantization: QuantizationSettings,
    calibration: Any,
    folder: Path,
    *,
    dtype: str,
) -> None:
    """Quantise a copy of a loaded model and write it to `folder`."""
    if scheme.backend == "bitsandbytes":
        _write_bitsandbytes(source, scheme, folder, dtype=dtype, device=str(loaded.model.device))
        return
    from edgequant import models
    from edgequant.quantization import checkpoint
    from edgequant.quantization import ptq as methods

    model: Any = copy.deepcopy(loaded.model)
    methods.quantize(model, scheme, calibration=list(calibration.split(8)), observer=quantization.observer)
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    models.cast(model, dtype)
    checkpoint.save(model, loaded.tokenizer, folder, scheme, parameters=parameters, made_from=loaded.source.name)


def _write_bitsandbytes(source: str, scheme: Scheme, folder: Path, *, dtype: str, device: str) -> None:
    from edgequant import models

    options = {"quantization_config": bitsandbytes_config(scheme.name, dtype)}
    quantized = models.load(source, dtype=dtype, device=device, load_options=options)
    quantized.model.save_pretrained(folder)
    quantized.tokenizer.save_pretrained(folder)


def bitsandbytes_config(scheme: str, dtype: str) -> Any:
    """transformers' configuration for bnb-int8 (LLM.int8), bnb-nf4 (QLoRA's NormalFloat) or bnb-fp4."""
    import torch
    from transformers import BitsAndBytesConfig

    if scheme == "bnb-int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=scheme.removeprefix("bnb-"),
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def _cast(model: Any, dtype: str) -> Any:
    from edgequant import models

    return models.cast(copy.deepcopy(model), dtype)


def _folder(output: str | None, scheme: Scheme, schemes: list[Scheme], default: Path) -> Path:
    root = Path(output).expanduser().resolve() if output else default
    return root if output and len(schemes) == 1 else root / scheme.name
