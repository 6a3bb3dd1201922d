"""Bits per layer under a size budget: chosen before anything is quantised, kept for a resumed run, logged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from edgequant.quantization.mixed_precision.bit_allocation import Allocation
    from edgequant.quantization.scheme import Scheme

SEQUENCES = 16  # whose gradients tell layers apart: each costs a pass forward and one backward


def with_size_budget(schemes: Sequence[Scheme], size_budget: str | None) -> list[Scheme]:
    """Put schemes under a size budget, for which bits are yet to be chosen; those of fixed bits stay as they are.

    A scheme whose name says a budget of its own (w4-g32+emb4@4.5bpp) keeps it.

    Args:
        size_budget: e.g. bits_per_parameter=4.5 or megabytes=80; None changes nothing.

    Raises:
        UserError: a budget that cannot be read or met, or none of the schemes can follow it.
    """
    from edgequant.errors import UserError
    from edgequant.quantization.size_budget import parse_size_budget

    if size_budget is None:
        return list(schemes)
    budget = parse_size_budget(size_budget)
    if not any(scheme.can_mix_bits for scheme in schemes):
        names = ", ".join(scheme.name for scheme in schemes)
        raise UserError(
            f"size_budget {size_budget!r} does not apply to {names}, whose bits are fixed; use w4a8-g32+emb4"
        )
    return [scheme.with_budget(budget) if scheme.can_mix_bits and not scheme.budget else scheme for scheme in schemes]


class LayerBits(NamedTuple):
    """A scheme whose every layer has its bits, and the table that says why; `rows` is empty without a size budget."""

    scheme: Scheme
    rows: list[dict[str, Any]]


def resolve_layer_bits(
    scheme: Scheme,
    model: Any,
    sequences: Tensor,
    folder: Path,
    *,
    dtype: str,
    resume: bool = False,
) -> LayerBits:
    """Choose bits layer by layer where the scheme has a size budget; a resumed run keeps those that it had.

    Args:
        scheme: with or without a budget.
        model: the floating-point model.
        sequences: [n, length] token ids of the calibration or training text.
        folder: of the run; the choice is kept here.
        dtype: compute type of the checkpoint to be.

    Raises:
        UserError: the budget cannot be met, says which ones can; or the scheme does not fit the model's layers or
            weights, by name.
    """
    from edgequant import models
    from edgequant.files import read_json, write_atomically
    from edgequant.quantization.layers.convert import check_weights
    from edgequant.quantization.mixed_precision.bit_allocation import choose_layer_bits
    from edgequant.quantization.scheme import Scheme

    if not scheme.awaits_layer_bits:
        if scheme.weight is not None:  # bitsandbytes keeps to itself what it can hold
            check_weights(model, scheme)
            _tell_replacements(model, scheme)
        return LayerBits(scheme, [])
    kept = folder / f"layer_bits-{scheme.name}.json"
    if resume and (found := read_json(kept)) is not None:
        return LayerBits(Scheme.from_dict(found["scheme"]), found["rows"])
    chosen = choose_layer_bits(
        model,
        scheme,
        list(sequences[:SEQUENCES]),
        dtype=dtype,
        bfloat16=models.pick_dtype("auto", str(model.device)) == "bfloat16",
    )
    write_atomically(kept, json.dumps({"scheme": chosen.scheme.to_dict(), "rows": chosen.rows}))
    print(_description(chosen), flush=True)
    _tell_replacements(model, chosen.scheme)
    return LayerBits(chosen.scheme, chosen.rows)


def _tell_replacements(model: Any, scheme: Scheme) -> None:
    from edgequant.quantization.layers.targets import find_targets, widths_of
    from edgequant.quantization.scheme import told_replacements

    targets = find_targets(model, scheme)
    if line := told_replacements(
        scheme, widths_of(model, targets), [name for name in (targets.embedding, targets.head) if name]
    ):
        print(f"{scheme.name}: {line}", flush=True)


def _description(chosen: Allocation) -> str:
    bits = [row["bits"] for row in chosen.rows]
    counts = ", ".join(f"{bits.count(width)} of {width} bits" for width in sorted({*bits}))
    note = f" ({chosen.note})" if chosen.note else ""
    return f"chose {chosen.scheme.name}: layers {counts}; at most {chosen.size / 1e6:.2f} MB{note}"


def log_layer_bits(rows: list[dict[str, Any]]) -> None:
    """The table of bits and sensitivities and its figure as artifacts of the active run; nothing without rows."""
    if not rows:
        return
    from edgequant import tracking
    from edgequant.reporting.figure_files import log_figure
    from edgequant.reporting.layer_bits import layer_bits_figure

    tracking.log_table(rows, "layer_bits.json")
    log_figure(layer_bits_figure(rows), "layer_bits.html")
