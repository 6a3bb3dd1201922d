"""QAT that would do harm: memorised pages, random rates and texts; PTQ is delivered then, and nothing is promoted."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from edgequant import tracking
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.qat import qat
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.steps import qat_experiment, qat_variants
from edgequant.workflows.steps.measure import Measured
from edgequant.workflows.steps.verdict import choose, held_out_losses
from edgequant_registry.workflow import PromotionRefusedError, promote

RUN = RunSettings(device="cpu", dtype="float32", seed=1)
MEMORIZING = TrainingSettings(
    steps=300, batch_size=2, sequence_length=64, learning_rate=1e-2, precision="float32", save_steps=0, patience=0
)


def page(folder: Path, seed: int, words: int = 250) -> str:
    """A file of random words of random letters, which nobody can predict who has not read it."""
    draw = random.Random(seed)
    text = " ".join("".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(words))
    (folder / "page.txt").write_text(text)
    return str(folder / "page.txt")


@pytest.fixture
def memorized(store, tmp_path, quick, capsys):
    """(result, the parent run, what was printed) of a qat that learned one page by heart."""
    quality = replace(quick, tasks=("domain_perplexity",))
    found = qat(model="tiny", dataset=page(tmp_path, 0), training=MEMORIZING, evaluation=quality, run=RUN)
    (parent,) = tracking.find_runs(workflow="qat")
    return found, parent, capsys.readouterr().out


def test_a_page_learned_by_heart_delivers_ptq_is_called_harmed_and_is_not_promoted(store, memorized):
    found, parent, printed = memorized
    assert "times through" in printed and "learned by heart" in printed
    lines = printed.splitlines()
    first = next(line for line in lines if line.startswith("delivered: "))
    assert first.startswith("delivered: ptq, because no state of QAT has a lower loss on held-out text")
    table = next(place for place, line in enumerate(lines) if line.startswith("qat: tiny"))
    assert lines.index(first) < table
    assert any(line.startswith("harmed: QAT harmed the model: at its last look, step 300") for line in lines)
    assert "edgequant promote" not in printed
    assert parent.tags["edgequant.delivered"] == "ptq" and parent.tags["edgequant.verdict"] == "harmed"
    assert "guard perplexity lay" in parent.tags["edgequant.harm"]
    delivered = next(row for row in found.rows if row["delivered"] == "yes")
    assert delivered["variant"] == "ptq" and found.metrics["against_baseline/harmed"] == 1.0
    with pytest.raises(PromotionRefusedError):
        promote(model="tiny")
    version = store.get_model_version("edgequant-tiny", "1")
    assert "against_baseline/harmed 1 is not at most 0" in version.tags["edgequant.gates"]
    assert version.tags["edgequant.variant"] == "ptq" and version.tags["edgequant.verdict"] == "harmed"


@pytest.mark.parametrize("seed", range(5))
def test_whatever_rate_length_and_text_what_is_delivered_predicts_no_held_out_text_worse_than_ptq(
    store, tmp_path, quick, seed
):
    draw = random.Random(seed)
    training = TrainingSettings(
        steps=draw.randint(1, 40), batch_size=draw.randint(1, 4), sequence_length=32, precision="float32",
        learning_rate=draw.choice(["auto", 10 ** draw.uniform(-5, 0)]), save_steps=0,
        distillation_weight=draw.choice([0.0, 0.5, 1.0]), eval_steps=draw.choice([None, draw.randint(1, 10)]),
    )  # fmt: skip
    dataset = draw.choice(["self-generated", page(tmp_path, seed, draw.randint(30, 300))])
    scheme = parse_scheme(draw.choice(["w4a8-g32+emb4", "w3-g64", "w8a8-static", "w2-g32"]))
    with tracking.workflow_run("qat", {"seed": seed}):
        experiment = qat_experiment.load(
            "tiny", scheme, dataset, training=training, qat=QatSettings(), evaluation=quick, data={}, folder=tmp_path,
            calibration=CalibrationSettings(num_calibration_samples=4), run=replace(RUN, seed=seed),
            adapt=draw.random() < 0.3,
        )  # fmt: skip
        made = {"ptq": qat_variants.rounded(experiment), "qat": qat_variants.quantized(experiment)}
    rows = {name: Measured(dict(one.metrics), {}, dict(one.notes)) for name, one in made.items()}
    delivered, because = choose(rows)
    losses = {name: held_out_losses(row) for name, row in rows.items()}
    again = experiment.held_out.losses(made[delivered].model)
    for text, loss in losses["ptq"].items():
        assert losses[delivered][text] <= loss + (0.01 if text == "guard" else 0.0), because
        assert again[text] == pytest.approx(losses[delivered][text], abs=1e-6)  # of the checkpoint on disk


def test_an_experiment_made_of_another_starts_from_nothing_that_was_chosen_there(store, tmp_path, quick):
    """Else QAT of one scheme would start from the integers of another's PTQ, as in a table of several schemes."""
    training = TrainingSettings(steps=1, batch_size=1, sequence_length=32, precision="float32", learning_rate=1e-3)
    with tracking.workflow_run("qat", {}):
        experiment = qat_experiment.load(
            "tiny", parse_scheme("w4-g32"), page(tmp_path, 1), training=training, qat=QatSettings(), evaluation=quick,
            data={}, folder=tmp_path, calibration=CalibrationSettings(num_calibration_samples=4), run=RUN,
        )  # fmt: skip
        qat_variants.rounded(experiment)
    assert set(experiment.chosen) == {"ptq"}
    assert not replace(experiment, scheme=parse_scheme("w3-g64")).chosen
