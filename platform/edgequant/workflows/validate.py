"""`validate`: what crosses a workflow's settings is checked in one place, before anything heavy is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from edgequant.errors import UserError
from edgequant.workflows.steps.data import check_dataset, check_guard
from edgequant.workflows.steps.layer_bits import with_size_budget

if TYPE_CHECKING:
    from edgequant.models.sources import ModelSource
    from edgequant.quantization.calibration import CalibrationSettings
    from edgequant.quantization.qat.settings import QatSettings
    from edgequant.quantization.scheme import Scheme
    from edgequant.training.settings import TrainingSettings


class Checked(NamedTuple):
    """What a workflow goes on with: the model's source, resolved, and the schemes, under their size budget."""

    source: ModelSource
    schemes: list[Scheme]


def validate(
    model: str | ModelSource,
    dataset: str,
    *,
    schemes: str = "",
    size_budget: str | None = None,
    method: str | None = None,
    training: TrainingSettings | None = None,
    qat: QatSettings | None = None,
    calibration: CalibrationSettings | None = None,
    self_generated: bool = True,
    guard: str | None = None,
) -> Checked:
    """Refuse what cannot work: names that mean nothing, group sizes that do not divide, settings that contradict.

    Args:
        model: its source; a hub model must be within reach.
        dataset: training or calibration text.
        schemes: one or several, separated by commas; none for floating-point training.
        size_budget: for schemes whose bits may differ from layer to layer.
        method: PTQ method.
        training, qat, calibration: settings of QAT, which no bitsandbytes scheme can take.
        self_generated: whether text that the model itself writes will do.
        guard: general text that is not trained on.

    Raises:
        UserError: names the value and what was expected.
    """
    from edgequant import models
    from edgequant.quantization.ptq.methods import parse_method
    from edgequant.quantization.scheme import check_group_sizes, parse_scheme

    if method is not None:
        parse_method(method)
    parsed = [parse_scheme(name.strip()) for name in schemes.split(",")] if schemes else []
    if qat is not None:
        _check_qat(parsed, training, qat, calibration)
    check_dataset(dataset, self_generated=self_generated)
    if guard is not None:
        check_guard(guard, dataset)
    source = models.check_available(model)
    models.check_floating(source)
    for scheme in parsed:
        check_group_sizes(scheme, models.layer_inputs(source))
    return Checked(source, with_size_budget(parsed, size_budget))


def _check_qat(
    schemes: list[Scheme], training: TrainingSettings | None, qat: QatSettings, calibration: CalibrationSettings | None
) -> None:
    for scheme in schemes:
        if scheme.backend != "edgequant":
            raise UserError(
                f"scheme {scheme.name!r} is bitsandbytes' own and cannot be trained; use `ptq`, or a scheme such as "
                "w4a8-g32+emb4"
            )
        qat.check_scheme(scheme)
    if training is not None:
        qat.check_distillation(training.distillation_weight)
        if calibration is not None:
            calibration.check_training(training.sequence_length)
