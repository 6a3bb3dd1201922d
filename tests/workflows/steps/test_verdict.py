"""Which variant a comparison delivers, what it calls harmed, and when a recovered fraction means something."""

from __future__ import annotations

import json
import math

import pytest

from edgequant.quantization.qat.settings import QatSettings
from edgequant.workflows.steps.measure import Measured
from edgequant.workflows.steps.verdict import choose, harmed_in_training, losses_of, recovered_fraction

SETTINGS = QatSettings()


def row(validation: float, guard: float, *, domain: float = 3.0, notes: dict[str, str] | None = None) -> Measured:
    """A variant with these held-out losses, whose 40 windows of 10 tokens cost `domain` nats a token in the mean."""
    items = [{"id": f"w{i}", "nats": 10 * domain * (1 + 0.001 * (-1) ** i), "tokens": 10} for i in range(40)]
    metrics = {"held_out/validation_loss": validation, "held_out/guard_loss": guard}
    return Measured(
        metrics | {"domain/perplexity": math.exp(domain)}, {"domain": items}, notes or {"best_step": "3 of 4"}
    )


def test_qat_is_delivered_where_it_predicts_both_texts_better_than_ptq():
    assert choose({"ptq": row(3.0, 4.0), "qat": row(2.9, 3.9)})[0] == "qat"


@pytest.mark.parametrize(
    "qat", [(2.0, 4.011), (3.001, 3.0), (3.0, 4.0), (2.995, 4.009), (math.nan, 3.9), (math.inf, math.inf)]
)
def test_ptq_is_delivered_where_qat_is_worse_on_either_text_or_no_better(qat):
    name, because = choose({"ptq": row(3.0, 4.0), "qat": row(*qat)})
    assert name == "ptq" and "no state of QAT has a lower loss on held-out text" in because
    same = [own == ptq for own, ptq in zip(qat, (3.0, 4.0), strict=True)]
    assert [f"(PTQ {told}" in because for told in ("3.000)", "4.000)")] == [not each for each in same]
    assert because.count("(PTQ the same)") == sum(same)


def test_losses_are_told_to_as_many_digits_as_it_takes_to_see_which_is_lower():
    name, because = choose({"ptq": row(6.2409, 4.0), "qat": row(6.24087, 4.0)})
    assert name == "qat"
    assert because.endswith("validation loss 6.24087 (PTQ 6.24090), guard loss 4.000 (PTQ the same)")
    rows = {"baseline": row(3.00001, 1), "control": row(3.00002, 1), "ptq": row(3, 1), "qat": row(3, 1)}
    assert recovered_fraction(rows, "disaster")[1].endswith("loss 3.00002, the model as it came 3.00001")
    assert recovered_fraction(rows | {"control": rows["baseline"]}, "disaster")[1].endswith(
        "validation loss 3.000, that of the model as it came"
    )


def test_a_guard_within_a_per_cent_is_no_reason_against_a_gain():
    assert choose({"ptq": row(3.0, 4.0), "qat": row(2.9, 4.009)})[0] == "qat"


def test_ptq_of_the_control_is_delivered_where_qat_lost_what_the_control_had_learned():
    rows = {"ptq": row(3.0, 4.0), "control": row(2.0, 3.5), "control-ptq": row(2.5, 3.9), "qat": row(2.9, 3.95)}
    assert choose(rows)[0] == "control-ptq"


def test_what_forgets_more_than_ptq_does_is_not_delivered_whatever_it_learned():
    rows = {"ptq": row(3.0, 4.0), "control": row(1.0, 9.0), "control-ptq": row(1.5, 9.0), "qat": row(1.2, 9.0)}
    assert choose(rows)[0] == "ptq"


def test_a_perplexity_beyond_the_accepted_rise_is_harm_and_one_within_is_not():
    rows = {"baseline": row(1, 1), "ptq": row(1, 1, domain=3.0 + math.log(1.05)), "qat": row(1, 1, domain=3.5)}
    found = {name: each[0] for name, each in losses_of(rows, SETTINGS).items()}
    assert found["ptq"].loss == pytest.approx(5.0) and not found["ptq"].harmed
    assert found["qat"].loss == pytest.approx(100 * (math.exp(0.5) - 1)) and found["qat"].harmed
    assert "domain/perplexity rose by 64.9%" in found["qat"].reason


def test_a_task_is_harmed_only_where_the_whole_interval_lies_beyond_the_accepted_points():
    def answers(right: int) -> Measured:
        return Measured({}, {"boolq": [{"id": f"q{i}", "correct": float(i < right)} for i in range(1000)]}, {})

    rows = {"baseline": answers(700), "ptq": answers(690), "qat": answers(600)}
    found = {name: each[0] for name, each in losses_of(rows, SETTINGS).items()}
    assert found["ptq"].loss == pytest.approx(1.0) and not found["ptq"].harmed
    assert found["qat"].loss == pytest.approx(10.0) and found["qat"].harmed
    few = {"baseline": answers(700), "ptq": answers(675)}  # 2.5 points, 1.5 to 3.5: not shown to be beyond 2
    (loss,) = losses_of(few, SETTINGS)["ptq"]
    assert loss.low < 2.0 < loss.loss and not loss.harmed


def test_a_training_whose_last_look_lies_beyond_the_accepted_rise_did_harm():
    looks = {"0": {"guard": 3.0}, "300": {"guard": 4.0}}
    trained = row(1, 1, notes={"best_step": "0 of 300", "looks": json.dumps(looks)})
    (said,) = harmed_in_training(trained, {"guard": 3.0}, SETTINGS)
    assert "step 300, the guard perplexity lay 172% above the model's as it came" in said
    assert harmed_in_training(trained, {"guard": 3.95}, SETTINGS) == []


def test_a_training_that_diverged_did_harm():
    notes = {
        "best_step": "0 of 9",
        "looks": json.dumps({"0": {"guard": 3.0}}),
        "ended": "it diverged (loss nan at step 9)",
    }
    assert harmed_in_training(row(1, 1, notes=notes), {"guard": 3.0}, SETTINGS) == [
        "QAT harmed the model: it diverged (loss nan at step 9)"
    ]


def test_the_recovered_fraction_is_the_share_of_the_controls_ptq_loss():
    nats = {"baseline": 3.2, "ptq": 3.4, "control": 3.0, "control-ptq": 3.3, "qat": 3.1}
    rows = {name: row(value, 1.0, domain=value) for name, value in nats.items()}
    share, why = recovered_fraction(rows, "disaster")
    expected = (math.exp(3.3) - math.exp(3.1)) / (math.exp(3.3) - math.exp(3.0))
    assert share == pytest.approx(expected) and why == ""


@pytest.mark.parametrize(
    ("nats", "said"),
    [
        ({"baseline": 3.0, "ptq": 3.4, "qat": 3.1}, "no control was trained"),
        ({"baseline": 3.0, "ptq": 3.4, "control": 3.0, "control-ptq": 3.3, "qat": 3.1}, "the control learned nothing"),
        ({"baseline": 3.2, "ptq": 3.4, "control": 3.0, "control-ptq": 3.0, "qat": 3.1}, "loses nothing that could"),
    ],
)
def test_without_a_loss_to_recover_there_is_no_fraction_but_a_reason(nats, said):
    share, why = recovered_fraction({name: row(value, 1.0, domain=value) for name, value in nats.items()}, "disaster")
    assert share is None and why.startswith("not defined, because") and said in why


def test_after_training_on_wikitext_its_perplexity_counts_and_has_to_be_there():
    nats = {"baseline": 3.2, "ptq": 3.4, "control": 3.0, "control-ptq": 3.3, "qat": 3.1}
    rows = {name: row(value, 1.0, domain=value) for name, value in nats.items()}
    share, why = recovered_fraction(rows, "wikitext-2,self-generated")
    assert share is None and why == "not defined, because wikitext2/perplexity was not measured"
