"""`python -m edgequant_registry.evidence.remeasuring JSON`: load a checkpoint in a fresh process, and measure.

`remeasure` starts it; the last line that it prints says what was found.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from edgequant import models
from edgequant.errors import UserError
from edgequant.evaluation.evidence_file import FILE, Conditions, read, rows_digest
from edgequant.evaluation.reproduction import Reproduction, reproduced
from edgequant.evaluation.suite import language_model
from edgequant.evaluation.tasks.halves import halves
from edgequant.evaluation.tasks.registry import find_data_set
from edgequant.evaluation.tasks.task import Rows
from edgequant.workflows.steps.data import rows_of


def remeasured(folder: Path, data_dir: str | None) -> list[Reproduction]:
    """Load a version's checkpoint and measure the figures of its evidence again.

    Args:
        folder: its files, evidence.json among them.
        data_dir: folder of benchmarks; None: the one that they were read from, or $EDGEQUANT_DATA.

    Raises:
        UserError: the checkpoint cannot be loaded.
    """
    evidence = read((folder / FILE).read_text(), FILE)
    conditions = evidence.conditions
    dtype, device = ("auto", "cpu") if conditions is None else (conditions.dtype, _device(conditions.device))
    loaded = models.load(str(folder), dtype=dtype, device=device)
    if conditions is None:
        why = "nobody filed how it was measured, so that it cannot be measured again"
        return [Reproduction(figures="", holds=False, reason=why)]
    model = language_model(loaded.model, loaded.tokenizer, conditions.settings())
    data = {name: _rows(name, conditions, data_dir) for name in conditions.data}
    return reproduced(model, evidence, conditions, data, folder)


def _device(measured_on: str) -> str:
    """The same kind, where this machine has one."""
    return measured_on if measured_on == models.pick_device("auto").partition(":")[0] else "cpu"


def _rows(name: str, conditions: Conditions, data_dir: str | None) -> Rows | str:
    """A data set's rows as they were measured on, or why they are not to be had."""
    if name in conditions.kept:
        return conditions.kept[name]
    data_set, where = find_data_set(name), data_dir or _if_there(conditions.data_dir)
    try:
        rows = rows_of(data_set, data_set.report, where)
    except UserError as error:
        return str(error)
    if rows is None:
        return f"it was not found in {_place(where)}; pass --data_dir DATA, or --remeasure false"
    for measured_on in (rows, halves(rows, data_set.units).report):  # a search that chose by the other half
        if rows_digest(measured_on) == conditions.data[name]:
            return measured_on
    return f"what lies in {_place(where)} is not what was measured on; pass --data_dir DATA, or --remeasure false"


def _if_there(data_dir: str | None) -> str | None:
    return data_dir if data_dir is not None and Path(data_dir).expanduser().is_dir() else None


def _place(data_dir: str | None) -> str:
    return data_dir or os.environ.get("EDGEQUANT_DATA") or "this installation"


def main(asked: Mapping[str, str | None]) -> None:
    """Print what was found, or end with why nothing could be."""
    try:
        found = remeasured(Path(str(asked["folder"])), asked["data_dir"])
    except UserError as error:
        sys.exit(str(error))
    print(json.dumps([asdict(each) for each in found]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
