"""Aliases move under a claim, with an entry in the history written before: whoever is killed, whoever comes second."""

from __future__ import annotations

import contextlib
import itertools
import json

import pytest
from registry_in_memory import RegistryInMemory

from edgequant import tracking
from edgequant.errors import UserError
from edgequant_registry.aliases import claims
from edgequant_registry.aliases.claims import PREFIX as CLAIM
from edgequant_registry.aliases.claims import Claim, claimed
from edgequant_registry.aliases.history import PREFIX, history_rows, read_history
from edgequant_registry.aliases.journal import settle, standing
from edgequant_registry.promotion import plan_rollback, promote_version, roll_back

HOST, _, PLACE = tracking.this_process().partition(":")
DEAD = ":".join([HOST, "4194305", *PLACE.split(":")[1:]])  # no process has this number
WRITES = ("set_", "delete_", "update_")


class KilledError(BaseException):
    """What SIGKILL would do: nothing behind it is written, no clean-up either."""


class DyingClient:
    """A client whose process is killed at its n-th write."""

    def __init__(self, client, at: int) -> None:
        self.client, self.left = client, at

    def __getattr__(self, name):
        if self.left < 0:
            raise KilledError
        if name.startswith(WRITES):
            self.left -= 1
            if self.left < 0:
                raise KilledError
        return getattr(self.client, name)


@contextlib.contextmanager
def killed_at(write: int, monkeypatch):
    """The body's process dies at that write; yields whether it did."""
    with monkeypatch.context() as patch:
        dying = DyingClient(tracking.client(), write)
        patch.setattr(tracking, "client", lambda: dying)
        patch.setattr(tracking, "this_process", lambda: DEAD)
        with contextlib.suppress(KilledError):
            yield lambda: dying.left < 0


def aliases(store, name):
    return {alias: str(version) for alias, version in store.get_registered_model(name).aliases.items()}


def entries(store, name):
    return read_history(store.get_registered_model(name).tags)[0]


def check(store, name):
    """What must hold whenever nobody is at work: aliases as the history says, nothing unfinished, no claim."""
    found, tags = aliases(store, name), store.get_registered_model(name).tags
    assert not [key for key in tags if key.startswith(CLAIM)]
    assert not [entry for entry in entries(store, name) if entry.state == "begun"]
    line = standing(name, "champion").line("champion")
    assert found.get("champion") == (line[-1].version if line else None)
    assert found.get("previous_champion") == (line[-2].version if len(line) > 1 else None)
    assert found.get("challenger") != found["champion"] if "champion" in found else True
    assert standing(name, "champion").unwritten == []


def first(judged, name):
    promote_version(judged(name, "1", None))


def beside(judged, name):
    first(judged, name)
    promote_version(judged(name, "2", "1", alias="challenger"))


def twice(judged, name):
    beside(judged, name)
    promote_version(judged(name, "2", "1"))


# what was done before, what is killed, the champion before and behind it
CHANGES = {
    "the first promotion": (lambda *_: None, first, None, "1"),
    "the challenger becomes champion": (beside, lambda judged, name: promote_version(judged(name, "2", "1")), "1", "2"),
    "a rollback": (twice, lambda _, name: roll_back(plan_rollback(name, "champion", 1), "run"), "2", "1"),
    "a challenger": (first, lambda judged, name: promote_version(judged(name, "2", "1", alias="challenger")), "1", "1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whoever_is_killed_between_two_writes_leaves_what_the_next_call_finishes_or_undoes(
    judged, models, monkeypatch, change
):
    before, during, champion, next_champion = CHANGES[change]
    seen, name = set(), "edgequant-any"
    for write in itertools.count():
        registry = RegistryInMemory(name, versions=2)
        monkeypatch.setattr(tracking, "client", lambda registry=registry: registry)
        before(judged, name)
        with killed_at(write, monkeypatch) as died:
            during(judged, name)
        left = registry.aliases.get("champion")
        assert left in (champion, next_champion)
        with claimed(name, "a test") as claim:
            settle(claim, "champion")
        assert registry.aliases.get("champion") == left  # settling moves nobody's champion
        check(registry, name)
        seen.add(left)
        if not died():
            break
    assert write > 8 and left == next_champion and seen == {champion, next_champion}
    assert {entry.state for entry in entries(registry, name)} == {"done"}


def test_a_killed_promotion_is_finished_by_the_next_one_and_tags_say_so(store, models, judged, monkeypatch):
    name = models(versions=3)
    first(judged, name)
    for write in itertools.count(4):
        with killed_at(write, monkeypatch):
            promote_version(judged(name, "2", "1"))
        if aliases(store, name)["champion"] == "2":
            break
    assert aliases(store, name) == {"champion": "2"}  # the alias had moved, nothing behind it was written
    assert promote_version(judged(name, "3", "2")).outcome == "promoted"
    assert aliases(store, name) == {"champion": "3", "previous_champion": "2"}
    assert store.get_model_version(name, "2").tags["edgequant.promotion"] == "promoted"
    told = [(entry.version, entry.state) for entry in entries(store, name) if entry.state != "abandoned"]
    assert told == [("1", "done"), ("2", "done"), ("3", "done")]
    roll_back(plan_rollback(name, "champion", 2), "run")
    assert aliases(store, name) == {"champion": "1"}
    check(store, name)


def test_rollback_goes_back_any_number_of_steps_also_where_a_version_was_champion_twice(store, models, judged):
    name = models(versions=3)
    for version, champion in (("1", None), ("2", "1"), ("1", "2"), ("3", "1")):
        promote_version(judged(name, version, champion))
    for champion, previous in (("1", "2"), ("2", "1"), ("1", None)):
        assert roll_back(plan_rollback(name, "champion", 1), "run") == ""
        assert (aliases(store, name)["champion"], aliases(store, name).get("previous_champion")) == (champion, previous)
        check(store, name)
    with pytest.raises(UserError, match="cannot be rolled back by 1: no earlier champion is known"):
        plan_rollback(name, "champion", 1)


def test_a_version_that_was_deleted_is_skipped_and_told(store, models, judged):
    name = models(versions=3)
    for version, champion in (("1", None), ("2", "1"), ("3", "2")):
        promote_version(judged(name, version, champion))
    store.delete_model_version(name, "2")
    plan = plan_rollback(name, "champion", 1)
    assert (plan.restored.version, plan.skipped) == ("1", ["2"])
    store.delete_model_version(name, "3")  # with it goes the alias
    assert plan_rollback(name, "champion", 1).lost is None
    roll_back(plan_rollback(name, "champion", 1), "run")
    assert aliases(store, name) == {"champion": "1"}
    check(store, name)


def test_what_somebody_else_moved_is_written_down_and_can_be_rolled_back(store, models, judged):
    name = models(versions=3)
    store.set_registered_model_alias(name, "previous_champion", "1")
    store.set_registered_model_alias(name, "champion", "2")  # by an edgequant that kept no history
    promote_version(judged(name, "3", "2"))
    store.set_registered_model_alias(name, "champion", "1")  # in the UI
    rows = history_rows(standing(name, "champion").entries)
    assert [(row["version"], row["how"]) for row in rows] == [
        ("1", "moved by hand"), ("2", "moved by hand"), ("3", "promoted"), ("1", "moved by hand"),
    ]  # fmt: skip
    roll_back(plan_rollback(name, "champion", 1), "run")
    assert aliases(store, name)["champion"] == "3"
    roll_back(plan_rollback(name, "champion", 2), "run")
    assert aliases(store, name) == {"champion": "1"}


def test_a_rollback_that_somebody_else_was_faster_with_goes_back_once(store, models, judged):
    name = models(versions=3)
    for version, champion in (("1", None), ("2", "1"), ("3", "2")):
        promote_version(judged(name, version, champion))
    plans = [plan_rollback(name, "champion", 1) for _ in range(2)]
    said = [roll_back(plan, f"rollback {place}") for place, plan in enumerate(plans)]
    assert said[0] == "" and said[1].startswith("version 2 became champion (rolled back by run rollback 0 at 20")
    assert aliases(store, name) == {"champion": "2", "previous_champion": "1"}


def test_claims_of_processes_that_are_gone_or_that_are_none_do_not_hold_anybody_up(store, models, monkeypatch):
    name = models(versions=1)
    for place, told in enumerate((json.dumps({"process": DEAD}), "{}", "no JSON", "3")):
        store.set_registered_model_tag(name, f"{CLAIM}{place}", told)
    with claimed(name, "a test") as claim:
        assert claim.registry() is not None
    assert not store.get_registered_model(name).tags


def test_a_claim_of_another_machine_is_waited_for_and_then_told_or_removed(store, models, monkeypatch):
    name = models(versions=1)
    told = {"process": "elsewhere:1:0", "purpose": "giving version 9 the alias champion", "since": "2026"}
    store.set_registered_model_tag(name, f"{CLAIM}other", json.dumps(told))
    monkeypatch.setattr(claims, "POLL_S", 0.01)
    monkeypatch.setattr(claims, "PATIENCE_S", 0.2)
    with pytest.raises(UserError, match=r"is being changed: giving version 9 .* by process elsewhere:1:0 since 2026"):
        Claim(name=name, purpose="a test").wait()
    monkeypatch.setattr(claims, "STALE_S", 0.1)
    with claimed(name, "a test"):
        pass
    assert (
        list(store.get_registered_model(name).tags) == []
        or f"{CLAIM}other" not in store.get_registered_model(name).tags
    )


def test_a_claim_that_was_taken_away_writes_nothing_more(store, models, judged):
    name = models(versions=1)
    with pytest.raises(UserError, match="was taken away"), claimed(name, "a test") as claim:
        store.delete_registered_model_tag(name, claim.key)
        claim.registry().set_registered_model_alias(name, "champion", "1")
    assert aliases(store, name) == {}


def test_an_entry_that_somebody_has_changed_is_told_and_the_rest_is_read(store, models, judged):
    name = models(versions=2)
    first(judged, name)
    store.set_registered_model_tag(name, f"{PREFIX}000002.forged", "champion since ever")
    found = standing(name, "champion")
    assert found.unreadable == [f"{PREFIX}000002.forged"] and [entry.version for entry in found.entries] == ["1"]
    promote_version(judged(name, "2", "1"))
    assert aliases(store, name) == {"champion": "2", "previous_champion": "1"}
