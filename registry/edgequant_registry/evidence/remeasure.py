"""Figures measured again before an alias moves: a fresh process loads the checkpoint and scores a sample of items."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgequant.evaluation.backends.alone import run_alone
from edgequant.evaluation.evidence_file import Evidence
from edgequant.evaluation.reproduction import Reproduction
from edgequant_registry.gates import Verdict, allowed

MODULE = "edgequant_registry.evidence.remeasuring"
RESTS_ON_ALL = "against_baseline/"  # whether a model was harmed is read off every other figure


@dataclass(frozen=True)
class Remeasured:
    """What became of a version's figures.

    Attributes:
        findings: of each task and of the size; empty where nothing was measured.
        words: for a tag of the version, and for people.
    """

    findings: tuple[Reproduction, ...]
    words: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """For a table."""
        return [asdict(finding) for finding in self.findings]


NOT_ASKED = Remeasured((), "no: --remeasure false")
NO_NEED = Remeasured((), "no: gates failed already")
NO_EVIDENCE = Remeasured((), "no: the version has no evidence that could be measured again")


@dataclass(frozen=True, kw_only=True)
class Remeasuring:
    """What was asked of it: whether, and from which folder of benchmarks; None: where they were read from, or
    $EDGEQUANT_DATA."""

    wanted: bool
    data_dir: str | None

    def of(self, folder: Path, evidence: Evidence | None, verdicts: Sequence[Verdict]) -> Remeasured:
        """Load a version's checkpoint in a fresh process and measure a sample again, where an alias could move.

        Args:
            folder: its verified files.
            evidence: of the version.
            verdicts: of the gates, as its evidence has the figures.
        """
        if evidence is None:
            return NO_EVIDENCE
        if not self.wanted:
            return NOT_ASKED
        if not allowed(verdicts):
            return NO_NEED
        print("measuring a sample of the figures again, in a fresh process", flush=True)
        return remeasure(folder, self.data_dir)


def remeasure(folder: Path, data_dir: str | None) -> Remeasured:
    """As `Remeasuring.of`, of a version that has evidence."""
    done = run_alone(MODULE, {"folder": str(folder), "data_dir": data_dir})
    if done.returncode:
        told = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        why = f"a fresh process cannot load or measure the checkpoint: {told}"
        findings = [Reproduction(figures="", holds=False, reason=why)]
    else:
        findings = [Reproduction(**finding) for finding in json.loads(done.stdout.splitlines()[-1])]
    failed = [finding.reason for finding in findings if not finding.holds]
    words = f"not reproduced: {'; '.join(failed)}" if failed else "; ".join(finding.reason for finding in findings)
    return Remeasured(tuple(findings), words[:5000])


def with_findings(verdicts: Sequence[Verdict], found: Remeasured) -> list[Verdict]:
    """Verdicts, failed where the figure that they rest on was not found again, with the reason."""
    return [_with_finding(verdict, found.findings) for verdict in verdicts]


def _with_finding(verdict: Verdict, findings: Sequence[Reproduction]) -> Verdict:
    metric = verdict.gate.metric
    for finding in findings:
        rests_on_it = verdict.outcome != "not asked for" and metric.startswith((finding.figures, RESTS_ON_ALL))
        if not finding.holds and (rests_on_it or not finding.figures):
            return replace(verdict, outcome="failed", reason=f"{verdict.reason}; not reproduced: {finding.reason}")
    return verdict
