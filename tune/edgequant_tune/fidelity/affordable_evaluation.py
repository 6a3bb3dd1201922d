"""How much a trial is measured on: what a quarter of its time pays for."""

from __future__ import annotations

import sys
from dataclasses import replace

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.registry import find_task
from edgequant.training.settings import TrainingSettings

SHARE = 0.25  # of a trial, at most, is measuring
LEAST = 20  # questions of a task: fewer say nothing
# Forward passes over one token, or what takes as long: a training step's backward pass is two, a teacher's is one.
TRAINED, TAUGHT = 3.0, 1.0
PER_QUESTION, PER_ANSWER = 200.0, 300.0  # a prompt; 32 tokens decoded one by one
PER_WINDOW, QUESTIONS_PER_WINDOW = 1024.0, 20  # perplexity: `limit` draws a window for so many questions
ANSWERED = ("squad", "domain_qa", "closed_book")  # tasks whose answers are decoded


def affordable(evaluation: EvaluationSettings, training: TrainingSettings, steps: int) -> EvaluationSettings:
    """The settings with at most as many questions as SHARE of a trial pays for; the same for all trials of a search.

    Args:
        evaluation: of a trial, with the tasks that its objectives need.
        training: of a trial.
        steps: of the longest one.
    """
    taught = bool(training.distillation_weight) and not training.teacher_top_k
    tokens = steps * training.tokens_per_step
    paid = SHARE / (1 - SHARE) * tokens * (TRAINED + (TAUGHT if taught else 0))
    each = sum(_cost(name) for name in evaluation.tasks)
    most = max(LEAST, int(paid / each)) if each else sys.maxsize
    if evaluation.limit is not None and evaluation.limit <= most:
        return evaluation
    if evaluation.limit is not None:
        print(
            f"trials are measured on {most} questions of a task rather than {evaluation.limit}, in at most a quarter "
            "of their time; the best one on all",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return replace(evaluation, limit=most)


def _cost(task: str) -> float:
    """Of one question more, in forward passes over a token."""
    known = find_task(task)
    if known.kind == "efficiency":
        return 0.0
    if known.data and not any(data_set.drawn for data_set in known.data):
        return PER_WINDOW / QUESTIONS_PER_WINDOW
    return PER_QUESTION + (PER_ANSWER if task in ANSWERED else 0.0)
