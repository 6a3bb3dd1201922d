import json
import shutil
from pathlib import Path

import pytest
import yaml

from edgequant import tracking
from edgequant.errors import UserError
from edgequant_registry.workflow import PromotionRefusedError, promote

GOOD = {"size/reduction_vs_fp16": 71.5, "domain/perplexity": 25.0}
NAME = "edgequant-tiny"


def aliases(store):
    return {alias: str(version) for alias, version in store.get_registered_model(NAME).aliases.items()}


def test_promotion_moves_the_alias_keeps_the_version_before_and_writes_down_why(store, register):
    register()
    promote()
    register(GOOD | {"domain/perplexity": 24.5})
    promote(model="tiny")
    assert aliases(store) == {"champion": "2", "previous_champion": "1"}
    version = store.get_model_version(NAME, "2")
    assert version.tags["edgequant.promotion"] == "promoted"
    run = store.get_run(version.tags["edgequant.promoted_by"])
    assert run.info.status == "FINISHED" and run.data.tags["edgequant.workflow"] == "promote"
    assert (run.data.params["model"], run.data.params["scheme"]) == ("tiny", "w4a8-g32+emb4")
    assert version.tags["edgequant.policy"].startswith("default@")
    verdicts = json.loads(version.tags["edgequant.gates"])
    said = {"verdict": "passed", "metric": "size/reduction_vs_fp16", "value": 71.5, "gate": "min 70", "limit": 70.0}
    assert {key: verdicts[0][key] for key in said} == said
    assert "Promoted to champion" in version.description
    names = {file.path for file in store.list_artifacts(run.info.run_id)}
    assert {"summary.json", "policy.yaml", "gates.json", "integrity.txt"} <= names
    told = Path(store.download_artifacts(run.info.run_id, "integrity.txt")).read_text()
    listed = json.loads(tracking.download(f"{version.source}/edgequant.json").read_text())["sha256"]
    assert told.startswith(f"{len(listed)} files ")  # whatever else lies beside them by now


def test_what_was_not_asked_for_is_told_and_not_passed_silently(store, register, capsys):
    register()
    promote()
    told = " ".join(capsys.readouterr().out.split())
    assert "not asked for, and so not judged: deploy/reduction_vs_fp16, deploy/size_gb, deploy/fits, latency/" in told
    assert "under policy default: 2 gates passed, 1 with nothing to compare, 13 not asked for" in told
    verdicts = json.loads(store.get_model_version(NAME, "1").tags["edgequant.gates"])
    assert {row["verdict"] for row in verdicts if row["metric"] == "deploy/fits"} == {"not asked for"}


def test_a_failed_gate_refuses_with_its_value_exit_code_1_and_a_finished_run(store, register, capsys):
    register(GOOD | {"size/reduction_vs_fp16": 50.0})
    with pytest.raises(SystemExit) as stopped:
        promote()
    assert stopped.value.code == 1
    assert aliases(store) == {}
    told = capsys.readouterr().out
    assert "version 1 refused as champion under" in told and "FAILED" in told and "50 % is not at least 70 %" in told
    version = store.get_model_version(NAME, "1")
    assert version.tags["edgequant.promotion"] == "refused"
    assert store.get_run(version.tags["edgequant.refused_by"]).info.status == "FINISHED"


def test_a_version_worse_than_the_champion_is_refused_and_the_champion_stays(store, register):
    register()
    promote()
    register(GOOD | {"domain/perplexity": 25.6})  # 2.4 % worse; 2 % are allowed
    with pytest.raises(PromotionRefusedError):
        promote()
    assert aliases(store) == {"champion": "1"}


def test_a_metric_that_is_required_and_missing_refuses(store, register):
    register({"size/reduction_vs_fp16": 75.0})
    with pytest.raises(PromotionRefusedError):
        promote()


@pytest.mark.long
def test_promoting_again_changes_nothing_but_the_record(store, register):
    register()
    promote()
    register(GOOD)
    promote()
    before = aliases(store)
    promote()
    promote(version=2)
    assert aliases(store) == before == {"champion": "2", "previous_champion": "1"}


def test_a_dry_run_shows_the_verdicts_and_changes_nothing(store, register, capsys):
    register()
    promote(dry_run=True)
    assert aliases(store) == {}
    assert "edgequant.promotion" not in store.get_model_version(NAME, "1").tags
    assert "would be promoted" in capsys.readouterr().out


@pytest.mark.long
def test_rollback_goes_back_one_promotion_at_a_time_and_then_says_that_there_is_none(store, register):
    for perplexity in (25.0, 24.8, 24.6):
        register(GOOD | {"domain/perplexity": perplexity})
        promote()
    assert aliases(store) == {"champion": "3", "previous_champion": "2"}
    promote(rollback=True)
    assert aliases(store) == {"champion": "2", "previous_champion": "1"}
    assert store.get_model_version(NAME, "3").tags["edgequant.promotion"] == "rolled back"
    with pytest.raises(UserError, match=r"was rolled back; .* --version 3"):
        promote()
    promote(model="tiny", rollback=True)
    assert aliases(store) == {"champion": "1"}
    with pytest.raises(UserError, match="cannot be rolled back"):
        promote(rollback=True)


def test_a_damaged_checkpoint_is_never_registered(store, register, checkpoint, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        register(folder=damaged)
    assert not store.search_registered_models()


def test_a_policy_of_ones_own_decides(store, register, tmp_path):
    register(GOOD | {"size/reduction_vs_fp16": 50.0})
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"name": "half", "gates": [{"metric": "size/reduction_vs_fp16", "min": 50}]}))
    promote(policy=str(own), alias="challenger")
    assert aliases(store) == {"challenger": "1"}


def test_the_newest_version_of_any_model_of_ours_is_the_default(store, register):
    register()
    register(name="edgequant-smollm2-135m")
    store.create_registered_model("someone-elses")
    promote()
    assert store.get_model_version_by_alias("edgequant-smollm2-135m", "champion")
    assert aliases(store) == {}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": "phi-1.5"}, "registered model 'edgequant-phi-1.5' not found .*; there are: edgequant-tiny. `"),
        ({"model": "phi-1.5"}, "`edgequant qat --model phi-1.5` registers one"),
        ({"model": "edgequant-tinny"}, "did you mean edgequant-tiny[?] .*`edgequant qat --model FOLDER` registers one"),
        ({"model": "my model"}, "`edgequant qat --model FOLDER` registers one"),  # there is no such model
        ({"version": 9}, "version 9 of any model not found; there are: edgequant-tiny/1, edgequant-tiny/2$"),
        ({"version": 0}, "version must be at least 1, got 0"),
        ({"alias": "latest"}, "alias must be .*, got 'latest'"),
        ({"policy": "no-such-policy"}, "no-such-policy"),
        ({"policy": "defalt"}, "did you mean default[?]"),
        ({"rollback": True, "version": 1}, "rollback"),
    ],
)
def test_bad_input_is_refused_with_what_there_is(store, register, wrong, said):
    for _ in range(2):
        store.create_registered_model(NAME) if not store.search_registered_models() else None
        store.create_model_version(NAME, "nowhere")
    with pytest.raises(UserError, match=said):
        promote(**wrong)


def test_a_registered_model_is_found_by_what_it_was_made_from(store, register, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "my Model")
    register(name="edgequant-my-model")
    for given in ("my-model", "edgequant-my-model", str(tmp_path / "my Model"), "someone/my-model"):
        with pytest.raises(UserError, match="version 7 of"):
            promote(model=given, version=7)


def test_an_empty_registry_says_how_to_fill_it(store):
    with pytest.raises(UserError, match="edgequant qat"):
        promote()


def test_a_refusal_stays_within_what_stores_take_and_broken_gates_come_first(store, register):
    gates = [{"metric": "domain/perplexity", "max": 30 + place, "why": "x" * 50} for place in range(90)]
    Path("many.yaml").write_text(yaml.safe_dump({"gates": [*gates, {"metric": "size/reduction_vs_fp16", "min": 80}]}))
    register()
    with pytest.raises(PromotionRefusedError):
        promote(policy="many.yaml")
    version = store.get_model_version(NAME, "1")
    rows = json.loads(version.tags["edgequant.gates"])
    assert rows[0]["verdict"] == "FAILED" and "71.5 % is not at least 80 %" in rows[0]["reason"] and len(rows) > 20
    assert max(len(version.tags["edgequant.gates"]), len(version.description)) < 5000
    assert version.description.splitlines()[2] == "- FAILED: size/reduction_vs_fp16 71.5 % is not at least 80 %"
    assert "Made by edgequant" in version.description


def test_what_a_person_wrote_about_a_version_stays_when_it_is_refused(store, register):
    register(GOOD | {"size/reduction_vs_fp16": 50.0})
    store.update_model_version(NAME, "1", "mine")
    with pytest.raises(PromotionRefusedError):
        promote()
    assert store.get_model_version(NAME, "1").description == "mine"
