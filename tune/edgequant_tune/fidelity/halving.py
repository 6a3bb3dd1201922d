"""Whether, and on which text, trials can be compared in training: successive halving stops those that lag behind.

What is compared is the next-token loss on the text whose perplexity the search optimises, on the split that trials are
scored on. Nothing else is predicted by it: not accuracy, not size, not times.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgequant.errors import UserError
from edgequant.evaluation.tasks.registry import owner_of
from edgequant_tune.objectives import Constraint, Objective

WORTH_HALVING = 8  # trials; with fewer, each one's result is worth more than the time it takes
# Trials are compared at a quarter and at a half of the training, and the worse half is stopped: earlier, in the warm-up
# of the learning rate, a comparison says little.
REDUCTION_FACTOR = 2
RUNGS = 2
# What changes the meaning of a loss at a step: rows of another length, and a learning rate that has fallen already.
INCOMPARABLE = ("sequence_length", "steps")
PREDICTED = ("perplexity", "bits_per_byte")  # of a whole text


def halving_text(
    scheduler: str,
    searched: Sequence[str],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    trials: int,
) -> str | None:
    """The data set on whose loss trials are compared in training; None where none is stopped.

    Args:
        scheduler: asha, none, or auto: asha where it is sound and pays.
        searched: names of hyperparameters.

    Raises:
        UserError: asha is asked for where a loss says nothing of what is optimised.
    """
    if scheduler == "none" or (scheduler == "auto" and trials < WORTH_HALVING):
        return None
    fault = _fault(searched, objectives)
    if fault and scheduler == "asha":
        raise UserError(f"scheduler asha {fault}; use none")
    is_blind = scheduler == "auto" and not _alike(searched, constraints)
    return None if fault or is_blind else text_of(objectives[0].metric)


def text_of(metric: str) -> str | None:
    """The data set whose loss predicts a metric; None: no loss does."""
    task = owner_of(metric)
    if task is None or not task.data or metric.partition("/")[2] not in PREDICTED:
        return None
    return task.data[0].name


def _fault(searched: Sequence[str], objectives: Sequence[Objective]) -> str:
    if incomparable := [name for name in searched if name in INCOMPARABLE]:
        return f"cannot compare the losses of trials that differ in {incomparable[0]}"
    if unpredicted := [one.metric for one in objectives if text_of(one.metric) is None]:
        return f"compares losses on held-out text, which do not predict {unpredicted[0]}"
    return "compares one loss, which cannot judge a trade-off of several objectives" if len(objectives) > 1 else ""


def _alike(searched: Sequence[str], constraints: Sequence[Constraint]) -> bool:
    """Whether the loss says which trials keep the constraints, or all keep them alike: a size that nothing changes."""
    unpredicted = [one.metric.partition("/")[0] for one in constraints if text_of(one.metric) is None]
    return not unpredicted or ({*unpredicted} <= {*OF_THE_SCHEME} and UNSIZED.issuperset(searched))


OF_THE_SCHEME = ("size", "deploy", "parity")  # metrics that trials of one scheme have alike
# Hyperparameters that leave the size of what comes out as it is.
UNSIZED = frozenset(
    {
        "learning_rate", "warmup_fraction", "weight_decay", "max_grad_norm", "batch_size", "gradient_accumulation",
        "distillation_weight", "temperature", "teacher_top_k", "patience", "learnable_scales", "freeze_observers_at",
        "activation_quant_start", "distill_from", "init_from", "observer", "num_calibration_samples",
        "student_learning_rate", "seed",
    }
)  # fmt: skip


def rungs_of(steps: int) -> tuple[int, ...]:
    """Successive halving's milestones: 1/4 and 1/2 of the steps; very short trainings have fewer, or none."""
    least = max(1, steps // REDUCTION_FACTOR**RUNGS)
    rungs = (least * REDUCTION_FACTOR**i for i in range(RUNGS))
    return tuple(rung for rung in rungs if rung < steps)
