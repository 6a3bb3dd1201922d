"""`export`: write a model as one GGUF file for llama.cpp, and measure how far the file is from the model.

mlflow run . -e export
edgequant export --model models:/edgequant-smollm2-135m@champion --format q8_0
edgequant export --model tiny                              # seconds
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.edge.formats import check_format
from edgequant.errors import UserError

if TYPE_CHECKING:
    from edgequant.edge.gguf_export import GgufFile
    from edgequant.models import LoadedModel

GB = 1e9


def export(
    *,
    model: str | None = None,
    format: str = "q8_0",
    embedding_format: str | None = None,
    output: str | None = None,
    check: bool = True,
    upload_limit_mb: float = 500.0,
    device: str = "cpu",
    experiment: str = "edgequant",
) -> None:
    """Write a model as a GGUF file that llama.cpp runs; log its size, SHA-256 and distance from the model.

    Args:
        model: short name, hub id, folder (plain, LoRA adapter or quantised checkpoint), .gguf file or MLflow URI;
            by default the newest registered champion, else the newest registered version, else smollm2-135m.
        format: q8_0, q5_1, q5_0, q4_1, q4_0, f16, bf16 or f32.
        embedding_format: format of the embedding and output matrix (default: as `format`, but at least q8_0 unless a
            checkpoint's own 4-bit integers fit).
        output: folder that receives the file (default: outputs/export/<run id>).
        check: read the file back and compare its predictions with the model's on held-out text.
        upload_limit_mb: log the file itself as an artifact up to this size in MB (10^6 bytes); 0 never.
        device: where the model is loaded: auto, cpu, cuda or cuda:N.
        experiment: MLflow experiment, unless `mlflow run` names one.
    """
    config = dict(locals())
    check_configuration(format, embedding_format, upload_limit_mb)

    from edgequant import models, tracking
    from edgequant.edge.gguf_export import write_gguf
    from edgequant.workflows.closing import print_closing

    source = model or default_model()
    models.resolve(source)
    with tracking.workflow_run("export", config | {"model": source}, experiment=experiment) as run:
        loaded = models.load(source, dtype="float32", device=device)
        folder = Path(output) if output else Path("outputs") / "export" / run.id
        target = folder.resolve() / f"{loaded.source.name}-{format}.gguf"
        written = write_gguf(loaded, target, format, embedding_format=embedding_format)
        notes = list(written.notes)
        metrics = size_metrics(written) | (parity_metrics(loaded, written, notes) if check else {})
        record(written, metrics, notes, loaded, format, upload_limit_mb)
        row = {"model": loaded.source.name, "scheme": scheme_of(loaded), "format": format, **metrics}
        row |= {"file": str(target), "sha256": written.sha256, "note": "; ".join(notes)}
        print_closing(f"export: {loaded.source.name} as {format}", [row], run, llama_cli(target))


def check_configuration(format: str, embedding_format: str | None, upload_limit_mb: float) -> None:
    """Refuse what cannot work before anything is loaded.

    Raises:
        UserError: unknown format or a negative limit.
    """
    check_format(format)
    if embedding_format is not None:
        check_format(embedding_format, "embedding_format")
    if upload_limit_mb < 0:
        raise UserError(f"upload_limit_mb {upload_limit_mb} is negative; expected 0 (never upload) or more")


def default_model() -> str:
    """The newest registered champion, else the newest registered version, else the embedded model; says which."""
    from edgequant import tracking

    registered = tracking.client().search_registered_models("name LIKE 'edgequant-%'")
    champions = [(entry, entry.aliases["champion"]) for entry in registered if "champion" in entry.aliases]
    newest = sorted(champions or _latest(registered), key=lambda pair: pair[0].last_updated_timestamp or 0)
    chosen = f"models:/{newest[-1][0].name}/{newest[-1][1]}" if newest else "smollm2-135m"
    why = "newest champion" if champions else "newest registered version" if newest else "nothing is registered yet"
    print(f"model: {chosen} ({why}; choose another with --model)")
    return chosen


def _latest(registered: Any) -> list[tuple[Any, str]]:
    from edgequant import tracking

    latest = []
    for entry in registered:
        versions = tracking.client().search_model_versions(f"name = '{entry.name}'")
        if versions:
            latest.append((entry, max(versions, key=lambda version: int(version.version)).version))
    return latest


def size_metrics(written: GgufFile) -> dict[str, float]:
    """The file's size in GB, bits per parameter, and per cent saved against 2 and 4 bytes per parameter."""
    return {
        "size/checkpoint_gb": written.size_bytes / GB,
        "size/bits_per_parameter": 8 * written.size_bytes / written.parameters,
        "size/reduction_vs_fp16": 100 * (1 - written.size_bytes / (2 * written.parameters)),
        "size/reduction_vs_fp32": 100 * (1 - written.size_bytes / (4 * written.parameters)),
    }


def parity_metrics(loaded: LoadedModel, written: GgufFile, notes: list[str]) -> dict[str, float]:
    """The file against the model on held-out text; where that cannot be measured, a note says why."""
    from edgequant.corpora.disaster_corpus import bundled_documents
    from edgequant.edge.parity import gguf_parity

    text = "\n\n".join(document.text for document in bundled_documents("test") if document.language == "en")
    try:
        return gguf_parity(loaded.model, loaded.tokenizer, written.path, text)
    except UserError as error:
        notes.append(str(error))
        return {}


def record(
    written: GgufFile, metrics: dict[str, float], notes: list[str], loaded: LoadedModel, format: str, limit_mb: float
) -> None:
    """Metrics, tags and, up to the limit, the file itself on the active run."""
    from edgequant import tracking

    tracking.log_metrics(metrics)
    tags = {"model": loaded.source.name, "scheme": scheme_of(loaded), "format": format, "phase": "export"}
    tags |= {"gguf_sha256": written.sha256, "gguf_path": str(written.path)}
    tracking.set_tags({f"edgequant.{key}": value for key, value in tags.items()})
    megabytes = written.size_bytes / 1e6
    if megabytes <= limit_mb:
        tracking.log_artifact(written.path, "gguf")
    else:
        notes.append(f"the file ({megabytes:,.0f} MB) is over upload_limit_mb {limit_mb:g} and was not uploaded")
    if notes:
        tracking.log_text("\n".join(notes) + "\n", "notes.txt")


def scheme_of(loaded: LoadedModel) -> str:
    """The scheme of a quantised checkpoint, else `none`."""
    quantization: Any = getattr(loaded.model.config, "quantization_config", None)
    scheme = getattr(quantization, "scheme", None)
    return str(getattr(scheme, "name", None) or "none")


def llama_cli(file: Path) -> str:
    """The command that talks to the file with llama.cpp."""
    prompt = "The flood warning for tonight says that"
    return f"llama-cli -m {shlex.quote(str(file))} -p {shlex.quote(prompt)} -n 64"
