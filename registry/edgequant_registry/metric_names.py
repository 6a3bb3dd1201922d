"""Which metrics there are, so that a policy that names another is refused before anything else. Light: no mlflow."""

from __future__ import annotations

import re
from difflib import get_close_matches

from edgequant.corpora.documents import DOMAINS
from edgequant.errors import UserError
from edgequant.evaluation.tasks.registry import TASKS, owner_of, paired_metrics
from edgequant.reporting.columns import described_metrics, is_metric
from edgequant.tracking.details import COUNTS, HIGH, LOW

# Of edgequant's own, what no table shows by itself.
UNSHOWN = (
    r"size/(parameters|peak_rss_gb|peak_cuda_gb|sparsity)",
    r"(domain|wikitext2|guard)/(bits_per_byte|word_perplexity)",
    r"latency/(\w+_)?(decode_ms_per_token|prefill_ms_per_token|time_to_first_token_ms)(_prompt\d+_batch\d+)?(_p90)?",
    r"latency/load_ms_p90",
    r"energy/(total_wh|measured_cpu|measured_gpu)",
    r"domain_qa/(boolean|span)_(over_long|items)",
    r"held_out/(guard|validation)_loss",
    r"train/(loss|learning_rate|epochs|steps|best_step)",
)


def check_metric(where: str, name: str, *, is_described: bool) -> None:
    """Refuse a metric that no version can have.

    Args:
        where: the gate, for the message.
        is_described: whether the policy says which end of it is better, as it may of a metric of its author's own.

    Raises:
        UserError: names it, and the one that it resembles.
    """
    if _is_known(name) or (is_described and is_metric(name) and not _is_ours(name)):
        return
    near = get_close_matches(name, described_metrics(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    own = "" if _is_ours(name) else "; a metric of your own needs `better: higher` or `lower`"
    raise UserError(f"{where}: metric {name!r} is unknown; {hint}docs/evaluation.md names those that are measured{own}")


def _is_known(name: str) -> bool:
    bare = name.removesuffix(LOW).removesuffix(HIGH)
    group, _, own = bare.partition("/")
    owner = owner_of(bare)
    if owner is not None and owner not in TASKS:
        return True  # another package's task, which shows what it likes
    if bare in described_metrics() or (owner is not None and own in COUNTS):
        return True
    if group == "against_baseline":
        return own == "harmed" or own in {f"{paired.metric.replace('/', '_')}_loss" for paired in paired_metrics()}
    if bare in {f"domain/perplexity_{re.sub(r'[^a-z0-9]+', '_', domain.lower())}" for domain in DOMAINS}:
        return True
    return any(re.fullmatch(pattern, bare) for pattern in UNSHOWN)


def _is_ours(name: str) -> bool:
    """Whether its group is one of edgequant's own, where all names are known."""
    groups = {known.partition("/")[0] for known in described_metrics()} | {"against_baseline", "held_out"}
    return name.partition("/")[0] in groups
