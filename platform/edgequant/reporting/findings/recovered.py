"""The share of PTQ's loss that QAT won back, where it means something: loss and gain both lie outside the noise."""

from __future__ import annotations

from edgequant.evaluation.statistics.verdicts import BETTER, WORSE
from edgequant.reporting.columns import is_finite, metric, significant
from edgequant.reporting.comparison import Comparison
from edgequant.reporting.findings.artifacts import Artifacts
from edgequant.reporting.findings.paired import ItemTables, siblings

FRACTION = "qat/recovered_fraction"


def recovered(comparison: Comparison, row: int, artifacts: Artifacts) -> tuple[float | None, str]:
    """(PTQ of the control - QAT) / (PTQ of the control - control) on the training text's perplexity, and in words.

    Args:
        row: index of a row of QAT.
        artifacts: of its runs.

    Returns:
        The fraction, None where it means nothing, and a sentence that says how much or why none; empty without a
        control, where nobody asks.
    """
    near, own = siblings(comparison, row), comparison.runs[row]
    if not {"control", "control-ptq"} <= near.keys():
        return None, ""
    if (said := artifacts.verdict(comparison.owners[row].id)) and said != "defined":
        return None, f"How much of PTQ's loss QAT recovered is {said}."
    key = _metric(comparison.owners[row].params.get("cfg.dataset", ""))
    control, rounded = near["control"], near["control-ptq"]
    values = [run.metrics.get(key) for run in (control, rounded, own)]
    kept = ItemTables(artifacts)
    lost = next((loss for loss in kept.losses(control, rounded)[0] if loss.metric == key), None)
    won = next((loss for loss in kept.losses(rounded, own)[0] if loss.metric == key), None)
    name = metric(key).heading
    if lost is None or won is None or not all(map(is_finite, values)):
        return None, f"How much of PTQ's loss QAT recovered cannot be told: {name} was not scored on the same items."
    if lost.outcome != WORSE:
        return None, (
            f"PTQ of the control loses no {name} that could be measured, so that there is nothing for QAT to recover."
        )
    if won.outcome != BETTER:
        return None, f"QAT recovered nothing of PTQ's loss in {name} that could be measured."
    trained_control, rounded_control, trained = (float(value) for value in values if value is not None)
    share = (rounded_control - trained) / (rounded_control - trained_control)
    return share, (
        f"QAT recovered {significant(100 * share, 3)} % of what PTQ costs the control in {name}: "
        f"{significant(rounded_control, 4)} became {significant(trained, 4)}, the control's is "
        f"{significant(trained_control, 4)}."
    )


def _metric(dataset: str) -> str:
    """Perplexity of the text that was trained on."""
    return "wikitext2/perplexity" if "wikitext" in dataset else "domain/perplexity"
