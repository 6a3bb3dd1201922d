"""A file that hangs, eats memory or breaks its process costs itself and nothing else."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from edgequant.corpora.processed_file import ProcessedFile
from edgequant.corpora.processing.sandbox import process_in_workers
from edgequant.corpora.settings import CorpusSettings
from edgequant.corpora.sources import list_files
from edgequant.corpora.text.tokens import TokenCounter, tokenizer_file
from edgequant.errors import UserError

GOOD = "The boats left the jetty at dawn and came back with nine people. " * 30


def pdf_of(stream: bytes) -> bytes:
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Resources<</Font<</F1 5 0 R>>>>/Contents 4 0 R>>",
        b"<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    body, offsets = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, item)
    table = b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return body + table + b"trailer\n<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % len(body)


def run(folder: Path, **limits: float) -> dict[str, ProcessedFile]:
    found: dict[str, ProcessedFile] = {}
    settings = CorpusSettings(workers=1, **limits)  # type: ignore[arg-type]
    process_in_workers(
        list_files(folder), tokenizer_file("tiny"), settings, lambda _, result: found.update({result.name: result})
    )
    return found


@pytest.mark.long
def test_a_pdf_that_takes_too_long_is_left_out_and_the_next_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "slow.pdf").write_bytes(pdf_of(zlib.compress(b"BT /F1 12 Tf (flood) Tj ET " * 1_500_000)))
    (tmp_path / "good.txt").write_text(GOOD)
    found = run(tmp_path, file_timeout_s=3, file_memory_mb=4_000)
    assert "file_timeout_s 3" in found["slow.pdf"].refused
    assert found["good.txt"].parts and not found["good.txt"].refused


def test_a_file_that_needs_too_much_memory_is_left_out_and_the_next_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "huge.txt").write_text("water, " * 2_500_000)
    (tmp_path / "good.txt").write_text(GOOD)
    found = run(tmp_path, file_memory_mb=60)
    assert "file_memory_mb 60" in found["huge.txt"].refused or "worker process" in found["huge.txt"].refused
    assert found["good.txt"].parts


def test_a_file_above_the_size_limit_is_named_with_both_sizes(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("x" * 2_000_000)
    assert "2 MB, more than file_megabytes 1" in run(tmp_path, file_megabytes=1)["big.txt"].refused


def test_workers_leave_no_process_behind(tmp_path: Path) -> None:
    import psutil

    (tmp_path / "good.txt").write_text(GOOD)
    run(tmp_path)
    assert not [
        p for p in psutil.Process().children() if "edgequant.corpora.processing.worker" in " ".join(p.cmdline())
    ]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"min_tokens": 150, "max_tokens": 100}, "min_tokens must be .* below settings.max_tokens, got 150 and 100"),
        ({"test_share": 1.5}, "test_share must be a share from 0 to 1, got 1.5"),
        ({"validation_share": 0.6, "test_share": 0.5}, "nothing to train on"),
        ({"workers": 0}, "workers must be above 0, got 0"),
        ({"engine": "spark"}, "engine must be local or ray, got 'spark'"),
    ],
)
def test_impossible_settings_are_refused_by_name(values: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        CorpusSettings(**values)


@pytest.mark.parametrize("name", ["tiny", pytest.param("smollm2-135m", marks=pytest.mark.long)])
def test_a_cut_or_changed_tokenizer_in_the_cache_is_made_again(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setenv("EDGEQUANT_CACHE", str(tmp_path))
    file = tokenizer_file(name)
    kept, counts = file.read_bytes(), TokenCounter(file)(["A flood came."])
    digests = sorted(file.parent.glob("*.sha256"))
    assert len(digests) == (name == "smollm2-135m")  # comes with a pinned package: found without transformers
    for changed in (file, *digests):
        for content in (b"", b"{", b"\xb7\x00/../x", b"0" * 64):
            changed.write_bytes(content)
            assert tokenizer_file(name) == file and file.read_bytes() == kept
    assert TokenCounter(file)(["A flood came."]) == counts
