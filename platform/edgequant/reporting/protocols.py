"""How each group of metrics is measured, in a sentence or two: what a reader has to know before comparing tables."""

from __future__ import annotations

from collections.abc import Iterable

PROTOCOLS = {
    "wikitext2": "WikiText-2 raw test split as one string, tokenised once, cut into non-overlapping windows; "
    "perplexity is exp(summed negative log-likelihood / tokens). Bits per byte compares across tokenizers.",
    "domain": "Perplexity of the project's held-out disaster-management documents, each read on its own. "
    "Lower is better; the documents are written for this project.",
    "boolq": "BoolQ validation: the likelier of ' yes' and ' no' after passage and question, as lm-evaluation-harness "
    "does. Always answering yes scores 62.17 %.",
    "squad": "SQuAD v1.1 development set, greedy answers, official normalisation; exact match and F1 in per cent.",
    "domain_qa": "Questions on the project's own documents, yes/no by likelihood and spans by greedy answers.",
    "latency": "Median over timed repetitions after warm-up, fixed prompt and output lengths; p90 is the 90th "
    "percentile. Decode is (end to end - first token) / (tokens - 1).",
    "size": "Bytes on disk with scales and zero points, in units of 10^9 (GB) or 10^6 (MB) bytes; the reduction is "
    "against 2 bytes (fp16) for every parameter of the unquantised model.",
    "qat": "Share of PTQ's loss that QAT recovered: (PTQ(control) - QAT) / (PTQ(control) - control) on perplexity, the "
    "control being the same training without quantisation.",
    "parity": "The delivered model against the simulated (or exported) one on the same text.",
}


def protocols_for(metric_names: Iterable[str]) -> dict[str, str]:
    """The sentences for the groups that occur, in the order above."""
    groups = {name.split("/")[0] for name in metric_names}
    return {group: text for group, text in PROTOCOLS.items() if group in groups}
