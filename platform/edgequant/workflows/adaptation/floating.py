"""The floating-point model that a quantised checkpoint was made from: written down, found again, measured beside it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.errors import UserError
from edgequant.models.manifest import Baseline, record_baseline, stated_baseline
from edgequant.quantization.qat.settings import QatSettings
from edgequant.workflows.adaptation.bases import INTEGERS, lasting_name

if TYPE_CHECKING:
    from edgequant.evaluation.settings import EvaluationSettings
    from edgequant.evaluation.tasks.task import Evaluation, EvaluationData
    from edgequant.models.loading import LoadedModel
    from edgequant.models.sources import ModelSource
    from edgequant.workflows.adaptation.ways import Way

Items = Mapping[str, Sequence[Mapping[str, Any]]]


class Floating(NamedTuple):
    """What is known of a checkpoint's floating-point model before anything is loaded.

    Attributes:
        source: of the model; None: it is not to be had, and `missing` says why.
        model: by which name it is written down.
        sha256: of its weights, as the checkpoint states it; empty where it does not.
        is_given: whether the user named it.
    """

    source: ModelSource | None = None
    model: str = ""
    sha256: str = ""
    is_given: bool = False
    missing: str = ""


class Judged(NamedTuple):
    """A verdict on a model: as metrics, as tags, in lines for people; `harmed` is None where nothing was compared."""

    metrics: dict[str, float] = {}  # noqa: RUF012 - nobody changes it
    tags: dict[str, str] = {}  # noqa: RUF012
    lines: Sequence[str] = ()
    harmed: bool | None = None

    @property
    def cells(self) -> dict[str, str]:
        """Of the model's row in a table."""
        return {} if self.harmed is None else {"verdict": "harmed" if self.harmed else "not harmed"}


class Original(NamedTuple):
    """The floating-point model of a checkpoint, loaded; None: it was not to be had, and `uncompared` says why."""

    loaded: LoadedModel | None = None
    baseline: Baseline | None = None
    uncompared: str = ""


class Reference(NamedTuple):
    """What a checkpoint is judged against.

    Attributes:
        measured: on its floating-point model; None: it was not to be had, and `uncompared` says why and what to do.
        baseline: which model that is.
    """

    measured: Evaluation | None = None
    baseline: Baseline | None = None
    uncompared: str = ""

    def record(self, checkpoint: Path) -> None:
        """Write down in what was made of a checkpoint that it has the same floating-point model."""
        if self.baseline is not None:
            record_baseline(checkpoint, self.baseline)

    def judge(self, items: Items) -> Judged:
        """What became of the model in one with these item scores, by the losses that `qat` accepts.

        Raises:
            UserError: they are of other items.
        """
        if self.measured is None:
            said = {"edgequant.verdict": self.uncompared.partition(":")[0]} if self.uncompared else {}
            return Judged(tags=said, lines=[self.uncompared] if self.uncompared else [])
        from edgequant.evaluation.harm import losses
        from edgequant.workflows.steps.verdict import harm_lines, harm_tags, loss_metrics

        accepted = QatSettings()
        found = losses(
            self.measured.items, items,
            perplexity_margin=accepted.max_perplexity_loss, task_margin=accepted.max_task_loss,
        )  # fmt: skip
        harm = [loss.reason for loss in found if loss.harmed]
        tags = {name: value for name, value in harm_tags(harm).items() if value}
        return Judged(loss_metrics(found, harm), tags, harm_lines(harm), bool(harm))


def baseline_of(loaded: Any, source: ModelSource, given: str) -> Baseline:
    """What to write down of a floating-point model, loaded in float32, that was named so."""
    from edgequant.models.digest import stored_digest

    return Baseline(lasting_name(source, given), stored_digest(loaded))


def find_floating(way: Way, given: str | None) -> Floating | None:
    """The floating-point model of the checkpoint that is adapted within its integers; None of any other way.

    Args:
        given: as the user names it; None: as the checkpoint does.

    Raises:
        UserError: it was given and there is no such model, or it is quantised.
    """
    if way.base != INTEGERS or not way.ships:
        return None
    stated = stated_baseline(way.checkpoint) if way.checkpoint else None
    named = given or (stated.model if stated else None)
    if named is None:
        return Floating(missing=f"{way.given} does not say which model it was made from")
    from edgequant import models

    try:
        source = models.check_available(named)
        models.check_floating(source)
    except UserError as error:
        if given:
            raise UserError(f"baseline: {error}") from error
        return Floating(missing=f"{way.given} was made from {named}, which cannot be had ({_first(error)})")
    return Floating(source, lasting_name(source, named), stated.sha256 if stated else "", given is not None)


def load_floating(found: Floating, way: Way) -> Original:
    """Load the floating-point model; it is left in the compute type of the comparison.

    Raises:
        UserError: it was given, and is not the model that the checkpoint was made from.
    """
    from edgequant import models
    from edgequant.models.digest import stored_digest

    if found.source is None:
        return Original(uncompared=_told(found.missing, way))
    loaded = models.load(found.source, dtype="float32", device=way.device)
    sha256 = stored_digest(loaded.model)
    if why := _another(found, sha256, loaded, way):
        if found.is_given:
            raise UserError(f"baseline must be the floating-point model of {way.given}, got {found.model}: {why}")
        return Original(uncompared=_told(f"{found.model}, from which {way.given} was made, {why}", way))
    models.cast(loaded.model, models.pick_dtype(way.dtype, str(loaded.model.device)))
    return Original(loaded, Baseline(found.model, sha256))


def measure_floating(original: Original, way: Way, data: EvaluationData, evaluation: EvaluationSettings) -> Reference:
    """Measure the floating-point model as the checkpoint will be, in a nested run."""
    from edgequant import tracking
    from edgequant.training.settings import UNTRAINED
    from edgequant.workflows.steps.measure import measure_items

    loaded = original.loaded
    if loaded is None:
        return Reference(uncompared=original.uncompared)
    names = {"model": way.source.family, "scheme": "none", "phase": "finetune"}
    with tracking.variant_run("baseline", **names, parameters=UNTRAINED):
        measured = measure_items(loaded.model, loaded.tokenizer, data, evaluation, checkpoint=loaded.stored)
    return Reference(measured, original.baseline)


def _another(found: Floating, sha256: str, loaded: LoadedModel, way: Way) -> str:
    """Why a model is not the one that a checkpoint was made from; empty where nothing speaks against it."""
    from edgequant.quantization.checkpoint import open_checkpoint

    if found.sha256:
        told = f"has other weights by now (SHA-256 {sha256[:12]}..., then {found.sha256[:12]}...)"
        return "" if found.sha256 == sha256 else told
    wanted = open_checkpoint(way.source.location).parameters if way.checkpoint else None
    there = sum(parameter.numel() for parameter in loaded.model.parameters())
    return "" if wanted in (None, there) else f"has {there:,} parameters, and the checkpoint's had {wanted:,}"


def _told(missing: str, way: Way) -> str:
    again = f"edgequant finetune --model {shlex.quote(way.given)} --baseline MODEL"
    return f"never compared with the floating-point model: {missing}; name it, and make this again: `{again}`"


def _first(error: UserError) -> str:
    return str(error).partition(";")[0]
