"""`validate`: what crosses a workflow's settings is checked in one place, before anything heavy is imported."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.errors import UserError
from edgequant.evaluation.efficiency.latency_lengths import fitting_lengths, wanted_lengths
from edgequant.export.formats import FOLDERS, GPTQ, ONNX, check_expressible, needs_checkpoint
from edgequant.export.gptq import expressible as gptq
from edgequant.export.onnx.expressible import check_configuration as check_graph
from edgequant.export.onnx.expressible import check_scheme
from edgequant.models.onnx.library import check_installed
from edgequant.outputs import Place, places
from edgequant.quantization.ptq.methods import parse_method
from edgequant.quantization.scheme import Scheme, check_group_sizes, parse_scheme
from edgequant.workflows.steps.layer_bits import with_size_budget
from edgequant.workflows.steps.text_mix import NAMED, check_dataset, check_guard, parse_mix

if TYPE_CHECKING:
    from edgequant.evaluation.settings import EvaluationSettings
    from edgequant.models.sources import ModelSource
    from edgequant.quantization.calibration import CalibrationSettings
    from edgequant.quantization.qat.settings import QatSettings
    from edgequant.training.settings import TrainingSettings


class Checked(NamedTuple):
    """What a workflow goes on with: the model's source, resolved, and the schemes, under their size budget."""

    source: ModelSource
    schemes: list[Scheme]


def validate(
    model: str | ModelSource,
    dataset: str,
    *,
    schemes: str = "",
    size_budget: str | None = None,
    method: str | None = None,
    training: TrainingSettings | None = None,
    qat: QatSettings | None = None,
    calibration: CalibrationSettings | None = None,
    self_generated: bool = True,
    replayed: bool = False,
    instructions: bool = False,
    guard: str | None = None,
    evaluation: EvaluationSettings | None = None,
    device: str = "auto",
    integers: bool = False,
) -> Checked:
    """Refuse what cannot work: names that mean nothing, layers that no scheme takes, settings that contradict.

    Args:
        model: its source; a hub model must be within reach.
        dataset: training or calibration text.
        schemes: one or several, separated by commas; none for floating-point training.
        size_budget: for schemes whose bits may differ from layer to layer; `method`: of PTQ.
        training, qat, calibration: settings of QAT, which no bitsandbytes scheme can take.
        self_generated: whether text that the model itself writes will do; `replayed`: beside other text;
            `instructions`: whether instructions with answers will do.
        guard: general text that is not trained on.
        evaluation, device: how and where it is measured.
        integers: whether one of our quantised checkpoints will do as well.

    Raises:
        UserError: names the value and what was expected.
    """
    from edgequant import models

    if method is not None:
        parse_method(method)
    models.check_device(device)
    parsed = [parse_scheme(name.strip()) for name in schemes.split(",")] if schemes else []
    if qat is not None:
        check_qat(parsed, training, qat, calibration)
    check_dataset(dataset, self_generated=self_generated, replayed=replayed, instructions=instructions)
    if guard is not None:
        check_guard(guard, dataset)
    source, rehearsed = models.rehearse(model)
    if not (integers and stated_scheme(source)):
        models.check_floating(source)
    _check_lengths(source, training, calibration)
    if evaluation is not None:
        check_window(source, evaluation)
    for scheme in parsed:
        check_group_sizes(scheme, models.layer_inputs(source))
        if rehearsed is not None and scheme.backend == "edgequant":
            from edgequant.quantization.layers.targets import find_targets

            find_targets(rehearsed, scheme)
    return Checked(source, with_size_budget(parsed, size_budget))


def _check_lengths(
    source: ModelSource, training: TrainingSettings | None, calibration: CalibrationSettings | None
) -> None:
    from edgequant import models

    context = models.context_length(source)
    for name, settings in (("training", training), ("calibration", calibration)):
        length = settings.sequence_length if settings is not None else None
        if context is not None and length is not None and length > context:
            raise UserError(
                f"{name}.sequence_length must be at most {context}, the context of {source.name}, got {length}"
            )


def check_window(source: ModelSource, evaluation: EvaluationSettings) -> None:
    """Refuse a window, or lengths to be timed, beyond the model's context, as far as that is known before loading.

    Default lengths are shortened to it, which is said.

    Raises:
        UserError: names both.
    """
    from edgequant import models

    context = models.context_length(source)
    if context is not None and evaluation.window is not None and evaluation.window > context:
        raise UserError(
            f"evaluation.window must be at most {context}, the context of {source.name}, got {evaluation.window}"
        )
    if context is not None and {"latency", "energy"} & set(evaluation.tasks):
        asked = evaluation.latency_prompt_lengths, evaluation.latency_new_tokens
        (fitting := fitting_lengths(*asked, context)).check(context)
        if fitting != wanted_lengths(*asked, on_gpu=False):
            print(f"latency: the default lengths are shortened to the context of {source.name}, {context} tokens")


def check_qat(
    schemes: list[Scheme], training: TrainingSettings | None, qat: QatSettings, calibration: CalibrationSettings | None
) -> None:
    """Refuse schemes that cannot be trained, and settings of QAT that contradict each other.

    Raises:
        UserError: names the value and what was expected.
    """
    for scheme in schemes:
        if scheme.backend != "edgequant":
            raise UserError(
                f"scheme {scheme.name!r} is bitsandbytes' own and cannot be trained; use `ptq`, or a scheme such as "
                "w4a8-g32+emb4"
            )
        qat.check_scheme(scheme)
    if training is not None:
        qat.check_distillation(training.distillation_weight)
        if calibration is not None:
            calibration.check_training(training.sequence_length)


def places_read(
    source: ModelSource | None,
    *texts: str,
    data_dir: str | None = None,
    teacher: str | None = None,
    predictions: str | None = None,
) -> list[Place]:
    """What a run reads from this machine's disk, so that no output takes its place, and one that is resumed finds it.

    Args:
        source: of the model, if one is loaded; the base of an adapter is read too.
        texts: training or calibration text and guard, by name or path, or mixes of them.
        data_dir: of the benchmarks, unless $EDGEQUANT_DATA names it.
        teacher: another model, by its source.
        predictions: a file of answers, which is scored.
    """
    location = source.location if source is not None and source.kind in ("folder", "gguf") else None
    base = None if source is None else _base_of(source)
    named = {"model": location, "base model": base, "teacher": teacher, "squad_predictions": predictions}
    named["data_dir"] = data_dir or os.environ.get("EDGEQUANT_DATA")
    parts = [part.name for text in texts for part in parse_mix(text) if part.name not in NAMED]
    return [*places(named), *(place for part in parts for place in places({"dataset": part}))]


def _base_of(source: ModelSource) -> str | None:
    from edgequant.models.configs import is_adapter
    from edgequant.models.sources import adapter_base

    folder = Path(source.location)
    return adapter_base(folder).location if source.kind == "folder" and is_adapter(folder) else None


def onnx_source(source: ModelSource, given: str) -> ModelSource:
    """A folder that onnxruntime-genai runs, whatever else may lie in it.

    Raises:
        UserError: there is none, onnxruntime-genai is absent, or a file was changed since it was written.
    """
    from edgequant.evaluation.backends.onnx.sequence import check_folder
    from edgequant.models.onnx.folder import KIND, is_onnx_folder

    if not is_onnx_folder(Path(source.location)):
        raise UserError(
            "model for runtime onnx must be a folder with genai_config.json, which `edgequant export --format onnx` "
            f"writes, got {given!r}; export it first or use runtime torch"
        )
    check_folder(Path(source.location))
    return replace(source, kind=KIND)


def chosen_runtime(model: str, runtime: str) -> str:
    """What `auto` stands for: onnx for an ONNX folder, llama.cpp for a .gguf file, torch for everything else."""
    if runtime != "auto":
        return runtime
    from edgequant import models

    return {"gguf": "llama.cpp", "onnx": "onnx"}.get(models.resolve(model).kind, "torch")


def check_threads(threads: int | None, runtime: str) -> None:
    """Refuse a number of threads that is none, or that the runtime does not take from here.

    Raises:
        UserError: names the value and what was expected.
    """
    if threads is not None and runtime == "torch":
        raise UserError(f"threads must be left out with runtime {runtime}, got {threads}; torch takes OMP_NUM_THREADS")
    if threads is not None and threads < 1:
        raise UserError(f"threads must be 1 or more, got {threads}; leave it out for the physical cores")


def check_exportable(source: ModelSource, format: str) -> None:
    """Refuse what a GGUF file or another format's folder cannot be made of, as far as can be told before loading.

    Raises:
        UserError: a configuration that the runtime would compute otherwise, no quantised checkpoint, or a scheme that
            the format cannot hold.
    """
    location = Path(source.location)
    is_plain_folder = source.kind == "folder" and (location / "config.json").is_file()
    if format not in FOLDERS:
        if source.kind == "gguf" or is_plain_folder:
            from edgequant.export.gguf import expressible

            expressible.check_source(source.kind, location)
        return
    if source.kind == "hub":
        return
    scheme = stated_scheme(source)
    if scheme is None:
        raise needs_checkpoint(format, source.name, source.location)
    {ONNX: check_scheme, GPTQ: gptq.check_scheme}.get(format, check_expressible)(scheme)
    if format == ONNX and is_plain_folder:
        from transformers import AutoConfig

        check_graph(AutoConfig.from_pretrained(source.location))


def refusal_of(source: ModelSource, format: str) -> UserError | None:
    """Why a model can be no such file or folder, as far as can be told before loading."""
    try:
        if format == ONNX:
            check_installed()
        check_exportable(source, format)
    except UserError as refusal:
        return refusal
    return None


def is_adapter_over_integers(source: ModelSource) -> bool:
    """Whether it is an adapter whose base is one of our checkpoints, by their files."""
    from edgequant.models.adapters.quantized_base import BITSANDBYTES, stated_base

    stated = stated_base(Path(source.location)) if source.kind == "folder" else None
    return stated is not None and stated not in BITSANDBYTES


def check_adapter_alone(source: ModelSource) -> None:
    """Refuse what is no adapter, or one that a LoRA file cannot hold.

    Raises:
        UserError: says which.
    """
    from edgequant.models.configs import is_adapter

    if source.kind != "folder" or not is_adapter(Path(source.location)):
        raise UserError(
            f"model for format lora must be a folder with an adapter, got {source.name!r}; use `edgequant finetune`'s "
            "adapter/, or another format"
        )
    from edgequant.export.gguf.lora import check_lora

    check_lora(Path(source.location))


def stated_scheme(source: ModelSource) -> Scheme | None:
    """The scheme of one of our checkpoints, as its configuration says it, on this machine or on the hub."""
    from edgequant import models
    from edgequant.models import hub

    config: dict[str, Any] = models.folder_config(Path(source.location)) if source.kind == "folder" else {}
    if source.kind == "hub":
        config = hub.stated_config(source.name, source.location)
    stated = (config.get("quantization_config") or {}).get("scheme")
    return None if stated is None else Scheme.from_dict(stated)
