"""Which PTQ method rounds a model best: by held-out text, of those that the machine has the time for."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.layers.convert import set_phase
from edgequant.quantization.ptq.automatic import can_be_judged
from edgequant.quantization.ptq.methods import best_method, parse_method
from edgequant.quantization.ptq.quantize import ErrorRow, choose_integers
from edgequant.quantization.scheme import Scheme
from edgequant.training.shared_parts import rows_digest
from edgequant.workflows.steps.held_out import HeldOut


def candidates(scheme: Scheme, parameters: int, device: str) -> list[str]:
    """PTQ methods to choose from: the best that fits the time, and rounding to nearest, which it has to beat.

    On a GPU also the simpler ones that the best is made of; at 8 bits and with static ranges rounding to nearest is no
    rival.

    Args:
        parameters: of the model.
        device: cpu, cuda or cuda:N.
    """
    kind = device.partition(":")[0]
    best = best_method(scheme, parameters, kind, has_text=True)
    scaling = "smoothquant+" if parse_method(best).scale is not None else ""
    simpler = [] if kind == "cpu" else [f"{scaling}{parse_method(best).round.name}", f"{scaling}mse_clip"]
    nearest = ["rtn"] if can_be_judged(scheme, best) else []
    return list(dict.fromkeys([best, *simpler, *nearest]))


class Choice(NamedTuple):
    """A method, a row per method that was tried, and what the method made: a model whose layers have their integers,
    with its error table, where main memory holds it."""

    method: str
    rows: list[dict[str, Any]]
    model: nn.Module | None
    errors: list[ErrorRow]


def choose_method(
    names: list[str],
    floating: Any,
    scheme: Scheme,
    calibration: list[Tensor],
    settings: CalibrationSettings,
    held_out: HeldOut,
    folder: Path,
) -> Choice:
    """Round a copy of the model by each method and take the one with the lowest mean loss on held-out text.

    Args:
        floating: model in float32; stays as it is.
        calibration: token batches [batch, length].
        folder: blocks that a method finished are kept in a folder of its name.

    Returns:
        The choice; `rows` hold `method`, `mean_loss` and the losses by text. The only method is not tried.
    """
    if len(names) == 1:
        return Choice(names[0], [], None, [])
    rows: list[dict[str, Any]] = []
    best: tuple[nn.Module | None, list[ErrorRow]] = (None, [])
    for name in names:
        model: nn.Module = copy.deepcopy(floating)
        errors = choose_integers(
            model, scheme, calibration, name, calibration_settings=settings, work_folder=folder / name
        )
        set_phase(model, quantize_inputs=True, observe=False)
        losses = held_out.losses(model, precision=settings.precision)
        rows.append({"method": name, "mean_loss": sum(losses.values()) / len(losses), **losses})
        if min(rows, key=_mean_loss) is rows[-1]:
            best = (model if next(model.parameters()).device.type == "cpu" else None, errors)
    return Choice(min(rows, key=_mean_loss)["method"], rows, *best)


def rounding_key(experiment: Any) -> dict[str, Any]:
    """What decides which integers PTQ gives the model of a `QatExperiment`, for experiments that share them."""
    qat, rows = experiment.qat, [*experiment.calibration_batches, *experiment.held_out.texts.values()]
    return {
        "model": experiment.name, "scheme": repr(experiment.scheme), "device": experiment.device,
        "method": qat.init_from, "sparsity": [qat.sparsity, qat.sparsity_pattern],
        "calibration": asdict(experiment.calibration), "text": rows_digest(rows),
    }  # fmt: skip


def _mean_loss(row: dict[str, Any]) -> float:
    return float(row["mean_loss"])
