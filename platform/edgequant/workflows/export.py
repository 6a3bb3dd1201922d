"""`export`: write a model for use without edgequant, and measure how far what was written is from the model.

mlflow run . -e export
edgequant export --model models:/edgequant-smollm2-135m@champion      # in the format that keeps its integers
edgequant export --model CHECKPOINT --format onnx --output FOLDER              # for onnxruntime-genai
edgequant export --model CHECKPOINT --format compressed-tensors --output FOLDER
edgequant export --model ADAPTER --format lora               # a LoRA file beside the GGUF file of its base
edgequant export --model tiny                              # seconds
"""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from edgequant.errors import UserError
from edgequant.export.choice import AUTO, Target, choose_target
from edgequant.export.formats import (
    COMPRESSED_TENSORS,
    FOLDERS,
    FORMATS,
    GPTQ,
    LORA,
    ONNX,
    QUANTIZE_CONFIG,
    check_format,
    file_name,
)
from edgequant.files import bytes_of
from edgequant.folders import check_own_file, share_folder
from edgequant.models.devices import check_device
from edgequant.models.onnx.folder import is_onnx_folder
from edgequant.models.onnx.library import check_installed
from edgequant.outputs import check_output, check_own_folder
from edgequant.workflows.settings import WorkflowResult
from edgequant.workflows.shipping import deploy_file, plan_timing
from edgequant.workflows.steps.register import default_model, promote_command
from edgequant.workflows.validate import (
    check_adapter_alone,
    check_exportable,
    is_adapter_over_integers,
    places_read,
    refusal_of,
    stated_scheme,
)

if TYPE_CHECKING:
    from edgequant.export.formats import Exported
    from edgequant.models.loading import LoadedModel
    from edgequant.models.sources import ModelSource
    from edgequant.workflows.shipping import Deployed, TimingPlan

GB = 1e9
GGUF = "gguf"  # kind of the folder that exported files share
LORA_LINE = "format: lora holds the adapter alone; llama.cpp puts it beside the model's file"


def export(
    *,
    model: str | None = None,
    format: str = AUTO,
    embedding_format: str | None = None,
    output: str | None = None,
    check: bool = True,
    device_profile: str | None = None,
    threads: int | None = None,
    upload_limit_mb: float = 500.0,
    device: str = "cpu",
    experiment: str = "edgequant",
) -> WorkflowResult:
    """Write a GGUF file, or a folder for ONNX Runtime or vLLM; log its size, SHA-256 and distance from the model.

    Args:
        model: short name, hub id, folder (plain, LoRA adapter or quantised checkpoint), .gguf file or MLflow URI;
            by default the newest registered champion, else the newest registered version, else smollm2-135m.
        format: auto, the one that keeps a checkpoint's integers (q8_0 for a model in floating point); q8_0, q6_k,
            q5_1, q5_0, q4_1, q4_k, q4_0, f16, bf16 or f32 for a GGUF file; lora for an adapter alone, as llama.cpp puts
            it beside a model's file (auto, over a checkpoint's integers); onnx, gptq and compressed-tensors write a
            quantised checkpoint as a folder, for onnxruntime-genai or for transformers and vLLM.
        embedding_format: GGUF format of the embedding and output matrix (default: the one that holds a checkpoint's
            own integers there, else as `format`, but at least q8_0).
        output: folder that receives the file, beside those of earlier exports, or that such a folder
            becomes; new, empty or of earlier exports (default: outputs/export/<run id>).
        check: read back what was written, compare its predictions with the model's on held-out text, and time a GGUF
            file in llama.cpp.
        device_profile: device that the file is to fit: raspberry-pi-5, phone-4gb, edge-2c-1g or a YAML file with
            threads, memory_gb and disk_gb; null: time it without limits.
        threads: CPU threads with which the file is timed; null takes the physical cores, or the profile's.
        upload_limit_mb: log the file or folder as an artifact up to this size in MB (10^6 bytes); 0 never.
        device: where the model is loaded: auto, cpu, cuda or cuda:N.
        experiment: MLflow experiment, unless `mlflow run` names one.
    """
    config = dict(locals())
    check_configuration(format, embedding_format, upload_limit_mb)
    check_device(device)
    timing = plan_timing(device_profile, threads, wanted=check)

    from edgequant import models, tracking
    from edgequant.export.shipped import matrix_widths, others_integers, scheme_of
    from edgequant.workflows.steps.summary import print_summary

    source = model or default_model()
    resolved = models.check_available(source)
    aim = target_of(resolved, format, embedding_format)
    folder = check_folder(output, aim.format, resolved)
    with tracking.workflow_run("export", config | {"model": source}, experiment=experiment) as run:
        kept = aim.format in (COMPRESSED_TENSORS, GPTQ)  # what is in floating point there keeps its type
        loaded = models.load(resolved, dtype="auto" if kept else "float32", device=device)
        scheme = scheme_of(loaded)
        said = LORA_LINE if aim.format == LORA else aim.line(scheme, others_integers(loaded), matrix_widths(loaded))
        print(said, flush=True)
        written = write(loaded, folder or tracking.run_folder("export", run.id), aim)
        notes = list(written.notes)
        is_model = written.parameters is not None
        metrics = size_metrics(written) | (parity_metrics(loaded, written, notes) if check and is_model else {})
        ships = deployed(written, aim.format, timing)
        metrics |= ships.metrics
        names = {"scheme": scheme.name if scheme is not None else "none", "format": aim.format}
        record(written, metrics, notes, loaded, names, upload_limit_mb)
        tracking.set_tags(ships.tags)
        row = {"model": loaded.source.name, **names, **metrics}
        row |= {"file": str(written.path), "sha256": written.sha256, "note": "; ".join(notes)}
        title = f"export: {loaded.source.name} as {aim.format}"
        lead = [said, *([] if is_model else written.notes), *ships.lead]
        print_summary(title, [row], run, next_command(written.path, source, resolved), lead=lead, notes=ships.notes)
    return WorkflowResult(run.id, metrics, str(written.path), [row])


def target_of(source: ModelSource, format: str, embedding_format: str | None) -> Target:
    """What the model is written as, before it is loaded; refuses what it cannot be, as far as can be told by then.

    Args:
        source: resolved, and fetched where it lies in the registry.

    Raises:
        UserError: a configuration that the runtime would compute otherwise, no quantised checkpoint, or a scheme or
            rows that the format cannot hold.
    """
    from edgequant import models

    is_over_integers = is_adapter_over_integers(source)
    if format == LORA or (format == AUTO and is_over_integers):
        check_adapter_alone(source)
        return Target(LORA)
    if is_over_integers:
        raise UserError(
            f"format of an adapter over a checkpoint's integers must be lora, got {format}, which has no place for it; "
            "use --format lora, and export the checkpoint by itself"
        )
    widths = list(models.layer_inputs(source).values())
    if format != AUTO:
        check_exportable(source, format)
        return Target(format, embedding_format).fitting(widths)
    refused, graph_refused = (refusal_of(source, form) for form in ("q8_0", ONNX))
    scheme, runs_in_onnx = stated_scheme(source), graph_refused is None
    return choose_target(scheme, embedding_format, refused=refused, runs_in_onnx=runs_in_onnx).fitting(widths)


def write(loaded: LoadedModel, folder: Path, aim: Target) -> Exported:
    """Write the model into a folder as one file, or as the folder itself."""
    if aim.format == ONNX:
        from edgequant.export.onnx.write import write_onnx

        return write_onnx(loaded, folder)
    if aim.format == GPTQ:
        from edgequant.export.gptq.write import write_gptq

        return write_gptq(loaded, folder)
    if aim.format == COMPRESSED_TENSORS:
        from edgequant.export.compressed_tensors.write import write_compressed_tensors

        return write_compressed_tensors(loaded, folder)
    from edgequant.export.gguf.lora import write_lora
    from edgequant.export.gguf.write import write_gguf

    file = folder / file_name(loaded.source.name, aim.format)
    check_own_file(file, GGUF)
    written = write_lora(Path(loaded.source.location), file) if aim.format == LORA else write_gguf(loaded, file, aim)
    share_folder(folder, GGUF, {file.name: written.sha256})
    return written


def check_folder(output: str | None, format: str, source: ModelSource) -> Path | None:
    """Refuse an output that is no place for a file of this format or for a folder; returns it, resolved.

    Raises:
        UserError: as `outputs.check_output`; or the file is there and is not one that an export wrote.
    """
    if output is None:
        check_own_folder("export")
        return None
    if format in FOLDERS:
        return check_output(output, format, reads=places_read(source))
    folder = check_output(output, GGUF, reads=places_read(source), shared=True)
    check_own_file(folder / file_name(source.name, format), GGUF, given=output)
    return folder


def check_configuration(format: str, embedding_format: str | None, upload_limit_mb: float) -> None:
    """Refuse what cannot work before anything is loaded.

    Raises:
        UserError: unknown format, a negative limit, packages that are absent, or settings that a folder cannot follow.
    """
    check_format(format, known=(AUTO, *FORMATS, LORA, *FOLDERS))
    if embedding_format is not None:
        check_format(embedding_format, "embedding_format")
    if not 0 <= upload_limit_mb < math.inf:
        raise UserError(f"upload_limit_mb must be 0 (never upload) or more, got {upload_limit_mb}")
    if format == ONNX:
        check_installed()
    if format in (LORA, *FOLDERS) and embedding_format is not None:
        raise UserError(
            f"embedding_format {embedding_format!r} is for GGUF files of models; in format {format} the embedding is "
            "what the checkpoint's scheme made it: leave it out, or quantise with a scheme such as w4-g32+emb4"
        )


def size_metrics(written: Exported) -> dict[str, float]:
    """The file's size in GB; of a model, bits per parameter and per cent saved against 2 and 4 bytes per parameter."""
    size = {"size/checkpoint_gb": written.size_bytes / GB}
    if written.parameters is None:
        return size
    bits = 8 * written.size_bytes / written.parameters
    saved = {f"size/reduction_vs_fp{of}": 100 * (1 - bits / of) for of in (16, 32)}
    return size | {"size/bits_per_parameter": bits} | saved


def deployed(written: Exported, format: str, timing: TimingPlan) -> Deployed:
    """The file or the whole folder as it ships, a file in its runtime."""
    from edgequant.export.shipped import deploy_sizes

    sizes = deploy_sizes(bytes_of(written.path), written.parameters)
    runs = (written.path.is_file() and format != LORA) or format == ONNX
    return deploy_file(written.path, format, sizes, timing.of(format, runs=runs))


def parity_metrics(loaded: LoadedModel, written: Exported, notes: list[str]) -> dict[str, float]:
    """What was written against the model on held-out text; where nothing installed reads it, or not as the same text, a
    note says so."""
    from edgequant import models
    from edgequant.corpora.disaster.corpus import bundled_documents
    from edgequant.export.parity import NotCompared, export_parity

    text = "\n\n".join(document.text for document in bundled_documents("test") if document.language == "en")
    model = models.cast(loaded.model, "float32")  # what was written is read back in it, whatever a checkpoint names
    try:
        return export_parity(model, loaded.tokenizer, written.path, text)
    except NotCompared as error:
        notes.append(str(error))
        return {}


def record(
    written: Exported,
    metrics: dict[str, float],
    notes: list[str],
    loaded: LoadedModel,
    names: dict[str, str],
    limit_mb: float,
) -> None:
    """Metrics, tags and, up to the limit, the file or folder itself on the active run; `names`: scheme and format."""
    from edgequant import tracking

    tracking.log_metrics(metrics)
    tags = {"model": loaded.source.name, **names, "phase": "export"}
    kind = GGUF if written.path.is_file() else names["format"].replace("-", "_")
    tags |= {f"{kind}_sha256": written.sha256, f"{kind}_path": str(written.path)}
    tracking.set_tags({f"edgequant.{key}": value for key, value in tags.items()})
    megabytes = written.size_bytes / 1e6
    if megabytes <= limit_mb:
        log = tracking.log_artifact if written.path.is_file() else tracking.log_folder
        log(written.path, kind)
    else:
        notes.append(
            f"what was written ({megabytes:,.0f} MB) is over upload_limit_mb {limit_mb:g} and was not uploaded"
        )
    if notes:
        tracking.log_text("\n".join(notes) + "\n", "notes.txt")


def next_command(written: Path, given: str, source: ModelSource) -> str:
    """The command that promotes what lies in the registry, talks to a file with llama.cpp, or measures a folder.

    Args:
        given: the model as it was named; `source`, resolved.
    """
    if version := re.fullmatch(r"models:/([^/]+)/(\d+)", given):
        return promote_command(f"models:/{version[1]}/{version[2]}")
    is_lora = written.name == file_name(source.name, LORA)  # llama.cpp runs it with its base alone
    path = shlex.quote(str(source.location if is_lora else written))
    if written.is_dir():
        if (written / QUANTIZE_CONFIG).is_file():
            return f"vllm serve {path}"
        return f"edgequant evaluate --model {path}{' --runtime onnx' if is_onnx_folder(written) else ''}"
    return f"edgequant chat --model {path}"
