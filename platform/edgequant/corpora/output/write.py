"""The data set on disk: a DatasetDict, Parquet, removed.jsonl, a data card with plots, and a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgequant.corpora.documents import NO_DOMAIN
from edgequant.corpora.output.data_card import data_card, save_plots
from edgequant.corpora.output.manifest import MANIFEST
from edgequant.corpora.processing.pipeline import Corpus
from edgequant.corpora.settings import CorpusSettings
from edgequant.files import write_atomically
from edgequant.folders import CORPUS, atomic_folder

COLUMNS = {
    "text": "string",
    "domain": "string",
    "domain_confidence": "float64",
    "document_type": "string",
    "hazard_type": "string",
    "agency": "string",
    "language": "string",
    "source": "string",
    "page": "int32",
    "section": "string",
    "sha256": "string",
    "licence": "string",
    "tokens": "int32",
    "augmented": "bool",
}


def write_corpus(
    corpus: Corpus, folder: Path, fingerprint: str, description: Mapping[str, str], settings: CorpusSettings
) -> dict[str, Any]:
    """Write the data set, whole or not at all, and return its manifest."""
    with atomic_folder(folder, CORPUS) as new:
        _write_datasets(corpus, new)
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in corpus.removed)
        (new / "removed.jsonl").write_text(lines, encoding="utf-8")
        save_plots(corpus, new / "plots")
        (new / "README.md").write_text(data_card(corpus, description), encoding="utf-8")
        contents = sorted(entry.name for entry in new.iterdir())
        manifest = {
            "fingerprint": fingerprint,
            "digest": corpus.digest,
            "rows": {split: len(rows) for split, rows in corpus.rows.items()},
            "splits": _split_lines(corpus, settings),
            "contents": contents,
            "files": corpus.files,
            **description,
        }
        write_atomically(new / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
    return manifest


def _split_lines(corpus: Corpus, settings: CorpusSettings) -> list[dict[str, Any]]:
    """The summary table: size of each split, and how many of its chunks have the wanted length."""
    lines = []
    for split, rows in corpus.rows.items():
        inside = sum(settings.min_tokens <= row["tokens"] <= settings.max_tokens for row in rows)
        in_range = f"{inside / len(rows):.1%}" if rows else None
        lines.append(
            {
                "split": split,
                "files": len({row["sha256"] for row in rows}),
                "chunks": len(rows),
                "tokens": sum(row["tokens"] for row in rows),
                f"within {settings.min_tokens}-{settings.max_tokens} tokens": in_range,
                "domains": len({row["domain"] for row in rows} - {NO_DOMAIN}),
                "augmented": sum(row["augmented"] for row in rows),
            }
        )
    return lines


def _write_datasets(corpus: Corpus, folder: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({name: datasets.Value(kind) for name, kind in COLUMNS.items()})
    splits = {
        split: datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in COLUMNS}, features=features)
        for split, rows in corpus.rows.items()
    }
    # An empty split would have no file at all, and load_from_disk could not read it again.
    shards: dict[str, Any] = {split: None if len(dataset) else 1 for split, dataset in splits.items()}
    datasets.DatasetDict(splits).save_to_disk(str(folder), num_shards=shards)
    (folder / "parquet").mkdir()
    for split, dataset in splits.items():
        dataset.to_parquet(str(folder / "parquet" / f"{split}.parquet"))
