"""`corpus`: from a folder of documents to a data set for training and evaluation.

mlflow run . -e corpus                                  # the bundled disaster corpus
mlflow run . -e corpus -P source=FOLDER                 # PDF, HTML, Markdown, text, DOCX, JSON, JSONL, archives
edgequant corpus --source FOLDER --tokenizer qwen2.5-0.5b --settings.workers 8
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgequant.corpora.settings import CorpusSettings
from edgequant.folders import CORPUS
from edgequant.outputs import check_output, places
from edgequant.workflows.settings import WorkflowResult

MOST_LINES = 200  # of a table of files


def corpus(
    *,
    source: str | None = None,
    output: str = "outputs/corpus",
    model: str = "smollm2-135m",
    tokenizer: str | None = None,
    settings: CorpusSettings = CorpusSettings(),
    experiment: str = "edgequant",
) -> WorkflowResult:
    """Build a data set of annotated chunks of 100-150 tokens from a folder of documents.

    Files are processed in parallel under time and memory limits; what cannot be read is reported and left out. A second
    run over unchanged input does no work, an added file costs only itself.

    Args:
        source: folder, file or archive (zip, tar, .gz, .bz2, .xz) of documents (default: the bundled disaster corpus).
        output: folder that receives the data set, new, empty or of an earlier one: load it with
            datasets.load_from_disk.
        model: model whose tokenizer measures the chunks; short name, hub id, folder, .gguf file or MLflow URI.
        tokenizer: folder or model to take the tokenizer from instead.
        settings: chunk sizes, lower-casing, duplicates, splits, augmentation, limits, engine.
        experiment: MLflow experiment, unless `mlflow run` names one.
    """
    config = {"source": source, "output": output, "model": model, "tokenizer": tokenizer, "settings": asdict(settings)}
    folder = check_folders(source, output, model, tokenizer)

    from edgequant import tracking
    from edgequant.corpora.output.manifest import read_manifest
    from edgequant.corpora.output.write import write_corpus
    from edgequant.corpora.processing.pipeline import build, files_of, source_fingerprint
    from edgequant.corpora.text.tokens import tokenizer_file
    from edgequant.workflows.steps.summary import print_summary

    files = files_of(source)
    with tracking.workflow_run("corpus", config, experiment=experiment) as run:
        counter = tokenizer_file(tokenizer or model)
        fingerprint, keys = source_fingerprint(files, counter, settings)
        manifest = read_manifest(folder)
        unchanged = manifest is not None and manifest["fingerprint"] == fingerprint
        processed = 0
        if manifest is None or not unchanged:
            built = build(files, keys, counter, settings, progress_bar(len(files)))
            description = {"source": source or "bundled", "tokenizer": tokenizer or model}
            manifest = write_corpus(built, folder, fingerprint, description, settings)
            processed = built.processed
        log_corpus(folder, manifest["files"])
        tracking.log_dataset(
            "corpus", manifest["digest"], source or "bundled", rows=sum(manifest["rows"].values()), context="training"
        )
        metrics = {f"corpus/{split}_chunks": float(rows) for split, rows in manifest["rows"].items()}
        tracking.log_metrics(
            metrics | {"corpus/files_processed": processed, "corpus/removed_passages": removed(folder)}
        )
        print_files(manifest["files"], bundled=source is None)
        trainable = manifest["rows"]["train"] > 0
        following = next_command(output) if trainable else None
        notes = () if trainable else ("no text to train on: all documents state another split than train",)
        print_summary(summary_title(unchanged), manifest["splits"], run, following, notes=notes)
    return WorkflowResult(run.id, metrics, str(folder), manifest["splits"])


def check_folders(source: str | None, output: str, model: str, tokenizer: str | None = None) -> Path:
    """Refuse what cannot work before anything heavy is imported; returns where the data set goes.

    Raises:
        UserError: the source does not exist, or `outputs.check_output` refuses the output.
    """
    from edgequant.corpora.sources import list_files
    from edgequant.models.sources import SHORT_NAMES

    if source is not None:
        list_files(Path(source).expanduser())
    named = {"source": source, "tokenizer": tokenizer, "model": None if model in SHORT_NAMES else model}
    return check_output(output, CORPUS, reads=places(named))


def log_corpus(folder: Path, files: list[dict[str, Any]]) -> None:
    """File what describes a data set with the run: card, plots, Parquet files, lists of its files and of what it lacks.

    Of an unchanged one too: the run that wrote it may have been killed before it filed anything.
    """
    from edgequant import tracking

    for name in ("README.md", "removed.jsonl"):
        tracking.log_artifact(folder / name, "corpus")
    for name in ("plots", "parquet"):
        tracking.log_folder(folder / name, f"corpus/{name}")
    tracking.log_table(files, "files.json")


def removed(folder: Path) -> int:
    """How many passages a data set left out."""
    with (folder / "removed.jsonl").open("rb") as lines:
        return sum(1 for _ in lines)


def progress_bar(files: int) -> Any:
    """A function (done, all) that moves a bar with the rate of files, or prints a line a minute."""
    from edgequant.progress import Progress

    bar = Progress(files, "corpus", "file")

    def move(done: int, _: int) -> None:
        bar.update(done - bar.done)
        if done >= files:
            bar.close()

    return move


def print_files(files: list[dict[str, Any]], *, bundled: bool = False) -> None:
    """One line per file: pages, words, chunks, what was removed, warnings; and a line for all.

    Of the bundled documents, and of very many files, those are shown that have a warning.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from edgequant.reporting.console import summary_console

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("file", overflow="fold")
    for name in ("pages", "words", "chunks", "removed\nwords", "dupli-\ncates"):
        table.add_column(name, justify="right")
    table.add_column("warnings", overflow="fold")
    counted = ("pages", "words", "chunks", "removed words", "duplicates")
    total = {key: sum(line[key] or 0 for line in files) for key in counted}
    each = not bundled and len(files) <= MOST_LINES
    shown = files if each else [line for line in files if line["warnings"]][:MOST_LINES]
    rest = f"{len(files) - len(shown):,} of them in files.json alone" if len(shown) < len(files) else ""
    for line in [*shown, {"file": f"all {len(files)}", **total, "warnings": rest}]:
        numbers = (f"{line[key]:,}" if line[key] else "–" for key in counted)
        table.add_row(Text(line["file"]), *numbers, Text(line["warnings"]))
    summary_console().print(table)


def summary_title(unchanged: bool) -> str:
    """Whether this run had anything to do."""
    return "corpus: nothing to do, the input is unchanged" if unchanged else "corpus"


def next_command(output: str) -> str:
    """What a user does with a data set."""
    return f"edgequant finetune --dataset {shlex.quote(output)}"
