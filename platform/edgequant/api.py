"""What a script or notebook calls: load, quantise, train through the quantiser, convert, evaluate, save.

    import edgequant

    model, tokenizer, source = edgequant.load("smollm2-135m", dtype="float32")
    edgequant.quantize(model, "w4a8-g32+emb4")
    measured = edgequant.evaluate(model, tokenizer, tasks=["domain_perplexity"], limit=20)
    print(measured.metrics["domain/perplexity"], measured.metrics["size/bits_per_parameter"])
    edgequant.save(model, tokenizer, "smollm2-w4a8")
    model, tokenizer, source = edgequant.load("smollm2-w4a8")

These are thin: a scheme may be a name, and a model remembers the scheme that it was quantised with and how many
parameters it had. Everything else is where `docs/architecture.md` says. Workflows, which track runs and compare
variants, are functions too: `from edgequant.workflows.qat import qat`. `examples/` holds scripts and a notebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant import api_checks
from edgequant.errors import UserError
from edgequant.folders import CHECKPOINT
from edgequant.models.loading import load
from edgequant.outputs import check_output, places
from edgequant.quantization.calibration import CalibrationSettings, ObserverName
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.scheme import Scheme, parse_scheme
from edgequant.settings_checks import check_type

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edgequant.evaluation.tasks.task import Evaluation
    from edgequant.quantization.checkpoint import QuantizedCheckpoint
    from edgequant.quantization.layers.targets import Targets

__all__ = ["convert", "evaluate", "load", "parse_scheme", "prepare", "quantize", "save"]


def quantize(
    model: PreTrainedModel,
    scheme: Scheme | str,
    *,
    calibration: Sequence[Tensor] | None = None,
    method: str = "rtn",
    settings: PtqSettings = PtqSettings(),
    calibration_settings: CalibrationSettings = CalibrationSettings(),
    work_folder: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Post-training quantisation, in place.

    Example:
        import edgequant
        from edgequant.corpora.disaster.corpus import bundled_documents
        from edgequant.corpora.packing import pack

        model, tokenizer, source = edgequant.load("smollm2-135m", dtype="float32")
        texts = [document.text for document in bundled_documents("train") if document.language == "en"]
        calibration = [pack(texts, tokenizer, 256)[:16].to(model.device)]
        errors = edgequant.quantize(model, "w4-g64", calibration=calibration, method="gptq")
        worst = max(errors, key=lambda row: row["output_error"])

    Args:
        model: floating-point causal language model in evaluation mode, on the device that does the work; in float32,
            since scales are computed in the type of the weights.
        scheme: what to quantise and how, e.g. "w4-g64" or "w4a8-g32+emb4".
        calibration: token batches [batch, length], int64, without padding, on the model's device; most methods and
            static activation ranges need them (behind smoothquant best half of it written by the model itself). Never
            text that is evaluated on.
        method: rtn, or others in a row such as "awq+gptq"; `edgequant ptq --help` lists them.
        settings: of the methods.
        calibration_settings: batch size, precision and observer; `calibration` itself says how much text there is.
        work_folder: where finished decoder blocks are kept, so that an interrupted call goes on behind them.

    Returns:
        One row per layer: `layer`, `kind`, `bits`, relative squared `weight_error` and, where the method sees
        activations, `output_error`.

    Raises:
        UserError: unknown scheme or method, missing or unfit calibration, a model that is quantised already, or a layer
            that cannot be quantised as asked, by name. The model is unchanged then.
    """
    from edgequant.quantization.ptq.quantize import quantize as quantize_layers

    chosen, batches = _fitting_scheme(model, scheme), api_checks.checked_batches(calibration, model)
    api_checks.check_kind("method", method, str)
    api_checks.check_kind("settings", settings, PtqSettings)
    api_checks.check_kind("calibration_settings", calibration_settings, CalibrationSettings)
    work = None if work_folder is None else api_checks.checked_folder("work_folder", work_folder)
    if chosen.activation is not None and chosen.activation.mode == "static" and not batches:
        raise UserError(f"scheme {chosen.name} has static activation ranges; give calibration text")
    parameters = _count_parameters(model)
    rows = quantize_layers(
        model, chosen, calibration=batches, method=method, settings=settings,
        calibration_settings=calibration_settings, work_folder=work,
    )  # fmt: skip
    _remember(model, chosen, parameters)
    return rows


def prepare(
    model: PreTrainedModel,
    scheme: Scheme | str,
    *,
    observer: ObserverName = "moving_average_minmax",
    learnable_scales: bool = False,
) -> Targets:
    """Put fake-quantised layers over a model's parameters, in place: train it as it is, then call `convert`.

    Example:
        import edgequant
        import torch

        model, tokenizer, source = edgequant.load("smollm2-135m", dtype="float32")
        edgequant.prepare(model, "w4a8-g32", learnable_scales=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        tokens = tokenizer("After the flood, boil the water.", return_tensors="pt")["input_ids"].to(model.device)
        for step in range(3):
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        edgequant.convert(model)

    Args:
        model: floating-point causal language model, in float32.
        scheme: what to quantise and how, e.g. "w4a8-g32+emb4".
        observer: how static activation ranges are found: moving_average_minmax, minmax, percentile or mse.
        learnable_scales: make weights' scales and zero points parameters that training moves (LSQ+, Bhalgat et al.
            2020).

    Returns:
        The names of the layers that are quantised now: `linears`, `embedding`, `head`, and whether these are `tied`.

    Raises:
        UserError: unknown scheme, one of bitsandbytes or one that does not fit a layer, or a model that is prepared or
            quantised already, by name. The model is unchanged then.
    """
    from edgequant.quantization.layers.convert import prepare as prepare_layers

    chosen, parameters = _fitting_scheme(model, scheme), _count_parameters(model)
    check_type("observer", observer, ObserverName)
    check_type("learnable_scales", learnable_scales, bool)
    targets = prepare_layers(model, chosen, observer=observer, learnable_scales=learnable_scales)
    _remember(model, chosen, parameters)
    return targets


def convert(model: PreTrainedModel) -> None:
    """Replace fake-quantised layers by integer ones, in place: what was simulated in training is what runs.

    Raises:
        UserError: the model was not prepared, or static activation ranges were never observed.
    """
    from edgequant.quantization.layers.convert import convert as convert_layers
    from edgequant.quantization.layers.fake_quantized import fake_quantized_layers

    api_checks.check_model(model)
    if not fake_quantized_layers(model):
        raise UserError("model has no fake-quantised layers to convert; call edgequant.prepare and train it first")
    convert_layers(model)


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    tasks: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    checkpoint: str | Path | None = None,
    **settings: Any,
) -> Evaluation:
    """Measure a model: flat metrics with confidence intervals, items, and notes on the protocol.

    Example:
        import edgequant

        model, tokenizer, source = edgequant.load("smollm2-135m")
        measured = edgequant.evaluate(model, tokenizer, tasks=["domain_perplexity", "boolq"], limit=20)
        print(measured.metrics["domain/perplexity"])  # of one document, so that there is no domain/perplexity_ci_low
        print(measured.notes)  # says so, and if boolq was left out for want of its file

    Args:
        model: a causal language model on its device, floating-point, prepared or quantised; or a `LanguageModel`.
        tokenizer: its tokenizer; None for a model that brings its own.
        tasks: names as `edgequant evaluate --help` lists them, or of tasks that `add_task` was given; None for all but
            energy. Benchmarks are left out with a note where neither `data_dir` nor $EDGEQUANT_DATA is set.
        data_dir: folder with WikiText-2, BoolQ and SQuAD in their official formats, with all that the tasks need.
        checkpoint: folder or file that the model was loaded from, whose bytes are its size on disk.
        settings: further fields of `edgequant.evaluation.settings.EvaluationSettings`, e.g. limit=200.

    Raises:
        UserError: unknown task or setting value, NaN logits, a benchmark file that is absent or damaged.
    """
    from edgequant.evaluation.backends.language_model import LanguageModel
    from edgequant.evaluation.settings import EvaluationSettings
    from edgequant.evaluation.suite import evaluate_model
    from edgequant.workflows.steps.data import evaluation_data

    if tasks is not None and (isinstance(tasks, str) or not isinstance(tasks, Sequence)):
        raise UserError(f"tasks must be a sequence of names, such as ['boolq'], got {tasks!r}")
    api_checks.check_names(settings, EvaluationSettings)
    if not isinstance(model, LanguageModel):
        api_checks.check_model(model)
        api_checks.check_tokenizer(tokenizer)
    for name, path in (("data_dir", data_dir), ("checkpoint", checkpoint)):
        if path is not None and not api_checks.checked_path(name, path).exists():
            raise UserError(f"{name} {str(path)!r} not found; name one that exists, or leave it out")
    chosen = EvaluationSettings(**settings) if tasks is None else EvaluationSettings(tasks=tuple(tasks), **settings)
    data = evaluation_data(chosen.tasks, str(data_dir) if data_dir else None)
    return evaluate_model(model, tokenizer, data, chosen, checkpoint=Path(checkpoint) if checkpoint else None)


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    scheme: Scheme | str | None = None,
    *,
    made_from: str | None = None,
) -> QuantizedCheckpoint:
    """Write a model that `quantize` or `convert` made as a checkpoint folder, whole or not at all.

    `edgequant.load(folder)` reads it, and after `import edgequant` so does
    `transformers.AutoModelForCausalLM.from_pretrained(folder)`.

    Args:
        folder: target: new, empty, or an earlier checkpoint, which is replaced once the new one stands; never the
            model's own folder, the working folder, or one with files of somebody else.
        scheme: the one that the model was quantised with, which it remembers; another is refused.
        made_from: short name of the model, for tags and tables (default: the folder's).

    Returns:
        `folder`, `scheme`, `parameters` before quantisation and `weight_bytes` on disk.

    Raises:
        UserError: the model was quantised by neither `quantize` nor `prepare` of this module, by another scheme, or is
            prepared and not yet converted; or `outputs.check_output` refuses the folder.
    """
    from edgequant.quantization import checkpoint
    from edgequant.quantization.layers.fake_quantized import fake_quantized_layers

    api_checks.check_model(model)
    api_checks.check_tokenizer(tokenizer)
    target = api_checks.checked_folder("folder", folder)
    remembered, parameters = _scheme_of(model), getattr(model.config, PARAMETERS, None)
    if remembered is None or parameters is None:
        raise UserError("model must be one that edgequant.quantize or edgequant.prepare has seen before it is saved")
    if scheme is not None and _parsed(scheme) != remembered:
        raise UserError(f"scheme must be {remembered.name}, which the model was quantised with, got {scheme!r}")
    if fake_quantized_layers(model):
        raise UserError("model must be converted to integers before it is saved; call edgequant.convert(model)")
    loaded_from = str(getattr(model.config, "_name_or_path", "") or "")
    place = check_output(target, CHECKPOINT, reads=places({"model": loaded_from}))
    name = place.name if made_from is None else made_from
    api_checks.check_kind("made_from", name, str)
    return checkpoint.save(model, tokenizer, target, remembered, parameters=parameters, made_from=name)


PARAMETERS = "num_parameters_unquantized"  # of a model's config: what bits per parameter are counted by
SCHEME = "edgequant_scheme"  # of a model itself: transformers takes a config's quantization_config for its own


def _parsed(scheme: Scheme | str) -> Scheme:
    return scheme if isinstance(scheme, Scheme) else parse_scheme(scheme)


def _fitting_scheme(model: Any, scheme: Scheme | str) -> Scheme:
    api_checks.check_model(model)
    chosen, present = _parsed(scheme), _scheme_of(model)
    if present is not None:
        raise UserError(f"model is quantised with {present.name} already; load the floating-point one again")
    if chosen.backend == "bitsandbytes":
        raise UserError(
            f"scheme {chosen.name} is bitsandbytes' own, which quantises while it loads: use `edgequant ptq`, or one "
            "such as w4a8-g32+emb4"
        )
    return chosen


def _scheme_of(model: Any) -> Scheme | None:
    """What the model was quantised with by this module, or by the checkpoint that it was loaded from."""
    loaded = getattr(getattr(model.config, "quantization_config", None), "scheme", None)
    return getattr(model, SCHEME, None) or (loaded if isinstance(loaded, Scheme) else None)


def _count_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _remember(model: Any, scheme: Scheme, parameters: int) -> None:
    setattr(model, SCHEME, scheme)
    if getattr(model.config, PARAMETERS, None) is None:
        setattr(model.config, PARAMETERS, parameters)
