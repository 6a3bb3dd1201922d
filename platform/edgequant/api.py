"""What a script or notebook calls: load, quantise, train through the quantiser, convert, evaluate, save.

    import edgequant

    model, tokenizer, _ = edgequant.load("smollm2-135m")
    edgequant.quantize(model, "w4a8-g32+emb4")
    print(edgequant.evaluate(model, tokenizer, tasks=("domain_perplexity",)).metrics)
    edgequant.save(model, tokenizer, "small", "w4a8-g32+emb4")

These are thin: a scheme may be a name, and a model remembers how many parameters it had. Everything else is where
`docs/architecture.md` says. Workflows, which track runs and compare variants, are functions too:
`from edgequant.workflows.qat import qat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.errors import UserError
from edgequant.models.loading import load
from edgequant.quantization.scheme import Scheme, parse_scheme

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgequant.evaluation.tasks.task import Evaluation
    from edgequant.quantization.checkpoint import QuantizedCheckpoint
    from edgequant.quantization.layers.targets import Targets

__all__ = ["convert", "evaluate", "load", "parse_scheme", "prepare", "quantize", "save"]


def quantize(
    model: nn.Module,
    scheme: Scheme | str,
    *,
    calibration: list[Tensor] | None = None,
    method: str = "rtn",
    **options: Any,
) -> list[dict[str, Any]]:
    """Post-training quantisation, in place.

    Args:
        model: floating-point causal language model in evaluation mode, in float32, on the device that does the work.
        scheme: what to quantise and how, e.g. "w4-g64" or "w4a8-g32+emb4".
        calibration: token batches [batch, length], int64, without padding; most methods and static activations need
            them.
        method: rtn, or others in a row such as "awq+gptq"; `edgequant ptq --help` lists them.
        options: further arguments of `edgequant.quantization.ptq.quantize.quantize`.

    Returns:
        One row per layer: `layer`, `bits`, relative squared `weight_error` and, where the method sees activations,
        `output_error`.

    Raises:
        UserError: unknown scheme or method, missing calibration, or a layer that cannot be quantised as asked, by name.
    """
    from edgequant.quantization.ptq import quantize as ptq

    _remember_parameters(model)
    return ptq.quantize(model, _scheme(scheme), calibration=calibration, method=method, **options)


def prepare(model: nn.Module, scheme: Scheme | str, **options: Any) -> Targets:
    """Put fake-quantised layers over a model's parameters, in place: train it as it is, then call `convert`.

    Example:
        edgequant.prepare(model, "w4a8-g32", learnable_scales=True)
        ... any training loop over model.parameters() ...
        edgequant.convert(model)

    Args:
        options: `observer` and `learnable_scales` of `edgequant.quantization.layers.convert.prepare`.

    Raises:
        UserError: a scheme of bitsandbytes, or one that does not fit a layer, by name.
    """
    from edgequant.quantization.layers import convert as qat

    _remember_parameters(model)
    return qat.prepare(model, _scheme(scheme), **options)


def convert(model: nn.Module) -> None:
    """Replace fake-quantised layers by integer ones, in place: what was simulated in training is what runs.

    Raises:
        UserError: static activation ranges were never observed.
    """
    from edgequant.quantization.layers import convert as qat

    qat.convert(model)


def evaluate(
    model: Any,
    tokenizer: Any,
    *,
    tasks: Sequence[str] | None = None,
    data_dir: str | None = None,
    checkpoint: str | Path | None = None,
    **settings: Any,
) -> Evaluation:
    """Measure a model: flat metrics with confidence intervals, items, and notes on the protocol.

    Args:
        model: a causal language model on its device.
        tasks: names as `edgequant evaluate --help` lists them; None for all but energy. Benchmarks whose files are in
            neither `data_dir` nor $EDGEQUANT_DATA are left out with a note.
        data_dir: folder with WikiText-2, BoolQ and SQuAD in their official formats.
        checkpoint: folder or file that the model was loaded from, whose bytes are its size on disk.
        settings: further fields of `EvaluationSettings`, e.g. limit=200.

    Raises:
        UserError: unknown task or setting value, NaN logits, a damaged benchmark file.
    """
    from edgequant.evaluation.settings import EvaluationSettings
    from edgequant.evaluation.suite import evaluate_model
    from edgequant.workflows.steps.data import evaluation_data

    chosen = EvaluationSettings(**settings) if tasks is None else EvaluationSettings(tasks=tuple(tasks), **settings)
    data = evaluation_data(chosen.tasks, data_dir)
    return evaluate_model(model, tokenizer, data, chosen, checkpoint=Path(checkpoint) if checkpoint else None)


def save(
    model: Any, tokenizer: Any, folder: str | Path, scheme: Scheme | str, *, made_from: str | None = None
) -> QuantizedCheckpoint:
    """Write a model that `quantize` or `convert` made as a checkpoint folder, whole or not at all.

    `edgequant.load(folder)` reads it, and after `import edgequant` so does
    `transformers.AutoModelForCausalLM.from_pretrained(folder)`.

    Args:
        scheme: the one that the model was quantised with.
        made_from: short name of the model, for tags and tables (default: the folder's).

    Raises:
        UserError: the model was quantised by neither `quantize` nor `prepare` of this module.
    """
    from edgequant.quantization import checkpoint

    parameters = getattr(model.config, PARAMETERS, None)
    if parameters is None:
        raise UserError("model must be one that edgequant.quantize or edgequant.prepare has seen before it is saved")
    name = made_from or Path(folder).name
    return checkpoint.save(model, tokenizer, Path(folder), _scheme(scheme), parameters=parameters, made_from=name)


PARAMETERS = "num_parameters_unquantized"  # of a model's config: what bits per parameter are counted by


def _scheme(scheme: Scheme | str) -> Scheme:
    return parse_scheme(scheme) if isinstance(scheme, str) else scheme


def _remember_parameters(model: Any) -> None:
    if getattr(model.config, PARAMETERS, None) is None:
        setattr(model.config, PARAMETERS, sum(parameter.numel() for parameter in model.parameters()))
