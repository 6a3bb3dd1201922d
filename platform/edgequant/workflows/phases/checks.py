"""What a pipeline is asked for, checked before a run exists. Light: no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgequant.errors import UserError
from edgequant.folders import CHECKPOINT
from edgequant.outputs import Place, check_output
from edgequant.quantization.ptq.methods import AUTO
from edgequant.quantization.qat.settings import QatSettings
from edgequant.workflows.phases.plan import ORDERS, PEERS
from edgequant.workflows.validate import places_read, validate

if TYPE_CHECKING:
    from edgequant.evaluation.settings import EvaluationSettings
    from edgequant.quantization.scheme import Scheme
    from edgequant.training.settings import TrainingSettings
    from edgequant.workflows.settings import RunSettings

PHASES = ("corpus", "baseline", "ptq", "qat", "finetune", "adapt", "compare", "evaluate", "export", "report")


def check_phases(phases: Sequence[str], adapt: Sequence[str]) -> None:
    """Refuse a phase or an order that does not exist, or a phase without what it reads.

    Raises:
        UserError: names it and those that do.
    """
    if not phases:
        raise UserError(f"phases must be some of {', '.join(PHASES)}, got none; leave them out for all")
    for phase in phases:
        if phase not in PHASES:
            raise UserError(f"phases must be some of {', '.join(PHASES)}, got {phase!r}")
    for order in adapt:
        if order not in ORDERS:
            raise UserError(f"adapt must be some of {', '.join(ORDERS)}, got {order!r}")
    needs = {"before": ("finetune",), "after": ("qat", "ptq")}
    for order in adapt if "adapt" in phases else ():
        if order in needs and not {*needs[order]} & {*phases}:
            raise UserError(
                f"adapt {order} needs phase {' or '.join(needs[order])}, got phases {', '.join(phases)}; add it, or "
                "leave the order out"
            )


def model_names(model: str, models: str | None) -> dict[str, str]:
    """The models by short name, as they were named.

    Raises:
        UserError: none, or two of the same name.
    """
    from edgequant.models import resolve

    given = [model] if models is None else [part.strip() for part in models.split(",") if part.strip()]
    if not given:
        raise UserError(f"models must name one or more, such as tiny,smollm2-135m, got {models!r}")
    found: dict[str, str] = {}
    for each in given:
        name = resolve(each).name
        if name in found:
            raise UserError(
                f"models must differ in name, got {found[name]!r} and {each!r}, both {name}; rename a folder"
            )
        found[name] = each
    return found


def validate_models(
    named: dict[str, str],
    scheme: str,
    method: str,
    training: TrainingSettings,
    evaluation: EvaluationSettings,
    run: RunSettings,
) -> list[Scheme]:
    """`validate` of every model; the schemes."""
    from edgequant.quantization.ptq.methods import parse_method

    if method != AUTO:
        parse_method(method)
    schemes: list[Scheme] = []
    for given in named.values():
        schemes = validate(
            given, "disaster", schemes=scheme, method=None if method == AUTO else method, training=training,
            qat=QatSettings(init_from=method), evaluation=evaluation, device=run.device,
        ).schemes  # fmt: skip
    return schemes


def places_of(model: str, run: RunSettings) -> list[Place]:
    """What a model's phases read from disk."""
    from edgequant.models import resolve

    return places_read(resolve(model), data_dir=run.data_dir)


def folder_of(folder: Path, name: str, named: dict[str, str]) -> Path:
    """Of a model: the pipeline's own where it is the only one."""
    return folder if len(named) == 1 else folder / name


class Subject(NamedTuple):
    """What a pipeline is about: the model as it was named, the schemes, and the documents."""

    model: str
    schemes: list[Scheme]
    source: str | None


def check_phase_folders(
    output: str, phases: Sequence[str], adapt: Sequence[str], subject: Subject, reads: Sequence[Place]
) -> None:
    """Refuse an output in which one of the phases could not write its own folder.

    Raises:
        UserError: as the phase would say it.
    """
    from edgequant.quantization.scheme import parse_scheme
    from edgequant.workflows import corpus, finetune, ptq, report

    schemes = [*subject.schemes, *map(parse_scheme, PEERS)]
    checks: dict[str, Callable[[str], object]] = {
        "corpus": lambda folder: corpus.check_folders(subject.source, folder, subject.model),
        "ptq": lambda folder: ptq.check_folders(folder, schemes, reads),
        "qat": lambda folder: check_output(folder, CHECKPOINT, reads=reads),
        "finetune": lambda folder: finetune.check_folders(folder, ("adapter", "merged"), reads),
        "adapt-before": lambda folder: check_output(folder, CHECKPOINT, reads=reads),
        "adapt-after": lambda folder: finetune.check_folders(folder, ("merged",), reads),
        "adapt-joint": lambda folder: check_output(folder, CHECKPOINT, reads=reads),
        "report": report.check_folder,
    }
    for phase in [*phases, *(f"adapt-{order}" for order in adapt if "adapt" in phases)]:
        if phase in checks:
            checks[phase](str(Path(output, phase)))
