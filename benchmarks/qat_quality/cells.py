"""Cells of the table: what each is, in which order they can be made, where a made one is kept. Light: no torch."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.files import write_atomically
from edgequant.quantization.scheme import parse_scheme

OURS = ("ptq", "qat", "qat-plain")
LIKE_WITH_LIKE = ("torchao-qat", "qat-as-torchao")
PEERS = ("bitsandbytes", "hqq", "torchao", "auto_round", "llmcompressor")
VARIANTS = ("baseline", *OURS, *LIKE_WITH_LIKE, "peers")
AUTO = "rate x 1"
SYMMETRIC = "-sym"  # behind a scheme's name; torchao's QAT has no zero points
MULTIPLES = (1.0, 0.1, 0.32, 3.2, 10.0)  # of the rate that `auto` finds; itself first
# What decides over a cell's numbers beside scheme, variant and seed.
DECISIVE = (
    *(
        "dataset",
        "guard",
        "epochs",
        "steps",
        "max_tokens",
        "batch",
        "accumulate",
        "sequence",
        "calibration",
        "ptq_method",
    ),
    *("peer_steps", "tasks", "limit", "windows", "dtype"),
)


@dataclass(frozen=True)
class Cell:
    """One result of the table.

    Attributes:
        variant: one of `VARIANTS` but `peers`, a peer's name, or `rate x M`.
        scheme: `none` for the baseline.
        run: digest of the model and of the settings.
        needs: keys of cells to be made before this one.
    """

    variant: str
    scheme: str
    seed: int
    run: str
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Fit for a file's name."""
        return f"{self.variant} {self.scheme} {self.seed} {self.run}".replace(" ", "_")


def planned(options: argparse.Namespace) -> list[Cell]:
    """The cells that the options ask for, each after those that it needs."""
    run = run_digest(options)
    return list(_grid(options, run) if options.rate_grid else _table(options, run))


def _table(options: argparse.Namespace, run: str) -> Iterator[Cell]:
    seeds, wanted, first = options.seeds, options.variants, Cell("baseline", "none", options.seeds[0], run)
    for seed in seeds:
        yield Cell("baseline", "none", seed, run, () if seed == seeds[0] else (first.key,))
    for variant in ("ptq", "qat"):
        for scheme in options.schemes:
            for seed in seeds:
                if variant in wanted:
                    yield _ours(variant, scheme, seed, run)
    if "peers" in wanted:
        for scheme in options.schemes:
            for seed in options.peer_seeds or seeds[:1]:
                yield from (Cell(peer, scheme, seed, run) for peer in options.peers)
    for variant in ("qat-plain", *LIKE_WITH_LIKE):
        for scheme in options.schemes:
            for seed in seeds:
                if variant in wanted and variant == "qat-plain":
                    yield _ours(variant, scheme, seed, run)
                elif variant in wanted:
                    yield from (Cell(variant, name, seed, run) for name in schemes_of_both(scheme))


def _ours(variant: str, scheme: str, seed: int, run: str) -> Cell:
    needs = {"ptq": (), "qat": ("ptq", "baseline"), "qat-plain": ("ptq",)}[variant]
    return Cell(
        variant, scheme, seed, run,
        tuple(Cell(name, "none" if name == "baseline" else scheme, seed, run).key for name in needs),
    )  # fmt: skip


def _grid(options: argparse.Namespace, run: str) -> Iterator[Cell]:
    for seed in options.seeds:
        yield Cell("baseline", "none", seed, run)
        yield Cell("ptq", options.rate_grid, seed, run)
        rounded = Cell("ptq", options.rate_grid, seed, run).key
        automatic = Cell(AUTO, options.rate_grid, seed, run, (rounded,))
        yield automatic
        for multiple in MULTIPLES[1:]:
            yield Cell(f"rate x {multiple:g}", options.rate_grid, seed, run, (automatic.key,))


def schemes_of_both(scheme: str) -> Iterator[str]:
    """What torchao's QAT can do of a scheme, and ours beside it: its grouped linears, symmetric where we know that."""
    parsed = parse_scheme(scheme)
    static = parsed.activation is not None and parsed.activation.mode == "static"
    if parsed.weight is None or parsed.weight.group_size is None or static:
        return
    linears = scheme.partition("+")[0].removesuffix(SYMMETRIC)
    try:
        yield parse_scheme(linears + SYMMETRIC).name
    except UserError:
        yield linears


def run_digest(options: argparse.Namespace) -> str:
    """Of the model and of what decides over numbers."""
    decisive = {name: getattr(options, name) for name in DECISIVE}
    return _digest(json.dumps([_model_digest(options.model), decisive], sort_keys=True).encode())


def _model_digest(model: str) -> str:
    folder = Path(model).expanduser()
    if not folder.exists():
        return model
    files = [folder] if folder.is_file() else sorted(file for file in folder.iterdir() if file.is_file())
    return _digest(b"".join(file.name.encode() + _beginning(file) for file in files))


def _beginning(file: Path) -> bytes:
    """Enough to tell one model from another without reading gigabytes."""
    with file.open("rb") as opened:
        return str(file.stat().st_size).encode() + opened.read(1 << 22)


def _digest(what: bytes) -> str:
    return hashlib.sha256(what).hexdigest()[:10]


class Store:
    """A folder with one JSON file for each cell that was made, and one for each that failed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, cell: Cell, rows: Sequence[dict[str, Any]]) -> None:
        """Write a cell's rows whole or not at all."""
        named = [{"variant": cell.variant, "scheme": cell.scheme, "seed": cell.seed} | row for row in rows]
        write_atomically(self._file(cell), json.dumps({"cell": asdict(cell), "rows": named}, indent=1))

    def fail(self, cell: Cell, error: str) -> None:
        """Say why there is nothing; the next run tries again."""
        write_atomically(self._error(cell), json.dumps({"cell": asdict(cell), "error": error}))

    def forget_failure(self, cell: Cell) -> None:
        self._error(cell).unlink(missing_ok=True)

    def has(self, cell: Cell) -> bool:
        return self._file(cell).is_file()

    def rows(self, cell: Cell) -> list[dict[str, Any]]:
        """Of a cell that was made; none of another."""
        return list(json.loads(self._file(cell).read_text())["rows"]) if self.has(cell) else []

    def error(self, cell: Cell) -> str:
        """Why the last try failed; empty where it did not."""
        file = self._error(cell)
        return str(json.loads(file.read_text())["error"]) if file.is_file() else ""

    def _file(self, cell: Cell) -> Path:
        return self.folder / f"{cell.key}.json"

    def _error(self, cell: Cell) -> Path:
        return self.folder / f"{cell.key}.error.json"
