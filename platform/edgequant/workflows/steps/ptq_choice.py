"""Which PTQ method rounds a model best: by held-out text, of those that the machine has the time for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.layers.convert import set_phase
from edgequant.quantization.ptq.automatic import can_be_judged
from edgequant.quantization.ptq.methods import AUTO, affordable_tokens, best_method, needs_own_text, parse_method
from edgequant.quantization.ptq.quantize import ErrorRow, choose_integers
from edgequant.quantization.scheme import Scheme
from edgequant.training.shared_parts import rows_digest
from edgequant.workflows.steps.data import SELF_GENERATED
from edgequant.workflows.steps.generated_text import generated_sequences
from edgequant.workflows.steps.held_out import HeldOut
from edgequant.workflows.steps.sequences import calibration_rows, in_turn
from edgequant.workflows.steps.text_mix import parse_mix


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


def methods_to_try(experiment: Any) -> list[str]:
    """PTQ methods that a `QatExperiment` chooses from."""
    by_auto = candidates(experiment.scheme, experiment.parameters, experiment.device)
    return list(experiment.qat.ptq_methods(by_auto))


def rows_to_calibrate(experiment: Any) -> Tensor:
    """Rows [n, length] of the training text of a `QatExperiment` that show its methods what activations look like;
    where they need what the model writes and the text has none of it, it writes some first."""
    count, text = experiment.calibration.num_calibration_samples, experiment.sequences
    own = all(needs_own_text(experiment.scheme, name) for name in methods_to_try(experiment))
    rows = calibration_rows(text, experiment.generated, count, own=own)
    if not own or bool(experiment.generated.any()):
        return rows
    written = generated_sequences(
        experiment.floating, experiment.tokenizer, len(rows), text.shape[1], seed=experiment.seed
    )
    return in_turn(rows, written)


def own_rows(loaded: Any, schemes: Sequence[Scheme], method: str, text: Tensor, dataset: str, *, seed: int) -> Tensor:
    """Rows [n, length] that a loaded model writes to be calibrated on beside those of a text [m, length], where a
    scheme needs them and the text has none of them: as many, or as many as `auto` has the time for."""
    has_some = any(part.name == SELF_GENERATED for part in parse_mix(dataset))
    if has_some or not any(needs_own_text(scheme, method) for scheme in schemes):
        return text[:0]
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    limit = affordable_tokens(parameters, loaded.model.device.type) if method == AUTO else None
    count = len(text) if limit is None else min(len(text), max(1, limit // (2 * text.shape[1])))
    return generated_sequences(loaded.model, loaded.tokenizer, count, text.shape[1], seed=seed)


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
