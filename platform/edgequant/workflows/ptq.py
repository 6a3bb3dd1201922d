"""`ptq`: round a model to one or several schemes without training, and measure what that costs.

mlflow run . -e ptq
edgequant ptq --model FOLDER --scheme w4-g64 --method awq+gptq --text wikitext-2 --quantization.sequences 128
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.ptq_settings import PtqSettings
from edgequant.workflows.inputs import check_text
from edgequant.workflows.layer_bits import choose, log_layer_bits, with_size_budget
from edgequant.workflows.measuring import COMPARISON, headline

if TYPE_CHECKING:
    from torch import Tensor

    from edgequant.models import LoadedModel
    from edgequant.quantization.scheme import Scheme


def ptq(
    *,
    model: str = "smollm2-135m",
    scheme: str = "w4a8-g32+emb4,q8_0,bnb-int8,bnb-nf4",
    method: str = "rtn",
    size_budget: str | None = None,
    text: str = "disaster",
    quantization: PtqSettings = PtqSettings(),
    evaluation: EvaluationSettings = COMPARISON,
    data_dir: str | None = None,
    output: str | None = None,
    register: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    resume: bool = False,
    experiment: str = "edgequant",
) -> None:
    """Post-training quantisation: the model and each of its schemes side by side, every checkpoint reloaded from disk.

    Args:
        model: short name, hub id, folder, .gguf file or MLflow URI of a floating-point model.
        scheme: one or several, separated by commas, e.g. w4-g32,w8a8-static,bnb-nf4.
        method: how integers are chosen: rtn, mse, gptq, awq, smoothquant, block, or e.g. awq+gptq, gptq+block.
        size_budget: mixed precision: choose bits layer by layer so that a checkpoint fits, e.g. bits_per_parameter=4.5
            or megabytes=80; schemes of fixed bits stay as they are.
        text: what is calibrated on: disaster, disaster-multilingual, wikitext-2, a folder or file, or generated (by the
            model itself); not the text that is evaluated on, whose like flatters the result.
        quantization: how methods calibrate and search.
        evaluation: what is measured and how.
        data_dir: folder with WikiText-2, BoolQ and SQuAD in their official formats (default: $EDGEQUANT_DATA).
        output: folder that receives the checkpoint, or one folder per scheme (default: outputs/ptq/<run id>).
        register: register each checkpoint as edgequant-<model> in the MLflow registry.
        device: auto, cpu, cuda or cuda:N.
        dtype: compute type while measuring: auto, float32, bfloat16 or float16.
        seed: order of the calibration text, draws of questions.
        resume: continue the newest interrupted run of this configuration, behind the decoder blocks that it finished.
        experiment: MLflow experiment, unless `mlflow run` names one.
    """
    config = dict(locals())
    schemes = check_configuration(model, scheme, text, method, size_budget)

    from edgequant import models, tracking
    from edgequant.workflows.closing import print_closing
    from edgequant.workflows.inputs import evaluation_data, training_sequences
    from edgequant.workflows.measuring import log_layer_errors, measure
    from edgequant.workflows.quantized_training import run_folder

    with tracking.workflow_run("ptq", config, experiment=experiment, resume=resume) as run:
        loaded = models.load(model, dtype="float32", device=device)
        dtype = models.pick_dtype(dtype, str(loaded.model.device))
        data = evaluation_data(evaluation.tasks, data_dir)
        length = quantization.sequence_length
        sequences = training_sequences(
            text, loaded.tokenizer, length, data, data_dir, seed=seed, model=loaded.model, needed=quantization.sequences
        )
        work = run_folder("ptq", run.id)
        calibration = Calibration(method, quantization, sequences, work / "finished-blocks")
        shown = sequences[: quantization.sequences]
        mixed = [choose(parsed, loaded.model, shown, work, dtype=dtype, resume=run.resumed) for parsed in schemes]
        with tracking.variant_run("baseline", model=loaded.source.name, scheme="none", phase="ptq"):
            floating = _cast(loaded.model, dtype)
            rows = {"none": measure(floating, loaded.tokenizer, data, evaluation)}
        for parsed, layer_bits in mixed:
            with tracking.variant_run("ptq", model=loaded.source.name, scheme=parsed.name, phase="ptq"):
                folder = _folder(output, parsed, schemes, work)
                errors = write_quantized(loaded, model, parsed, calibration, folder, dtype=dtype)
                log_layer_errors(errors)
                log_layer_bits(layer_bits)
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
        shutil.rmtree(calibration.work_folder, ignore_errors=True)
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


class Calibration(NamedTuple):
    """How weights and ranges are chosen. `sequences` [n, length] are token ids; finished blocks go to `work_folder`."""

    method: str
    settings: PtqSettings
    sequences: Tensor
    work_folder: Path


def check_configuration(
    model: str, scheme: str, text: str, method: str = "rtn", size_budget: str | None = None
) -> list[Scheme]:
    """Refuse what cannot work before anything heavy is imported.

    Raises:
        UserError: names the value and what was expected.
    """
    from edgequant import models
    from edgequant.quantization.ptq_settings import parse_method
    from edgequant.quantization.scheme import check_group_sizes, parse_scheme

    parse_method(method)
    parsed = with_size_budget([parse_scheme(name.strip()) for name in scheme.split(",")], size_budget)
    check_text(text, generated=True)
    models.check_available(model)
    for one in parsed:
        check_group_sizes(one, models.layer_inputs(model))
    return parsed


def write_quantized(
    loaded: LoadedModel, source: str, scheme: Scheme, calibration: Calibration, folder: Path, *, dtype: str
) -> list[dict[str, Any]]:
    """Quantise a copy of a loaded model and write it to `folder`; returns the per-layer errors, if any."""
    if scheme.backend == "bitsandbytes":
        _write_bitsandbytes(source, scheme, folder, dtype=dtype, device=str(loaded.model.device))
        return []
    from edgequant import models
    from edgequant.quantization import checkpoint
    from edgequant.quantization import ptq as methods

    model: Any = copy.deepcopy(loaded.model)
    errors = methods.quantize(
        model,
        scheme,
        calibration=[calibration.sequences[: calibration.settings.sequences].to(model.device)],
        method=calibration.method,
        settings=calibration.settings,
        work_folder=calibration.work_folder,
    )
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    models.cast(model, dtype)
    checkpoint.save(model, loaded.tokenizer, folder, scheme, parameters=parameters, made_from=loaded.source.name)
    return errors


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
