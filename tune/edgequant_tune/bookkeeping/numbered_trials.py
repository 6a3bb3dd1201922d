"""The searcher as Ray sees it: every proposal becomes a numbered trial, interrupted ones come first."""

from __future__ import annotations

from typing import Any

from ray.tune.search import Searcher

from edgequant_tune.bookkeeping.ledger import Ledger
from edgequant_tune.trial import IDENTITY


class NumberedTrials(Searcher):
    """Proposals of another searcher, each with the id under which the ledger has it.

    Ray gives a trial a new name in every session; the ledger's goes with the trial's hyperparameters instead. Lives in
    the driver: its state is the ledger's, so nothing of it is saved.
    """

    def __init__(self, searcher: Searcher, ledger: Ledger) -> None:
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self.proposer, self.ledger, self.is_exhausted = searcher, ledger, False
        self._interrupted = [record.id for record in ledger.unfinished]

    def suggest(self, trial_id: str) -> Any:
        proposed = self.proposer.suggest(trial_id)
        if not isinstance(proposed, dict):  # none now, or none any more
            self.is_exhausted = proposed == Searcher.FINISHED
            return proposed
        id = self._interrupted.pop(0) if self._interrupted else self.ledger.begin(proposed).id
        return {**proposed, IDENTITY: id}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.proposer.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.proposer.on_trial_complete(trial_id, result, error or bool((result or {}).get("failed")))

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        pass

    def __getstate__(self) -> dict[str, Any]:
        return {}
