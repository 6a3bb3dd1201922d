import pytest


@pytest.fixture(scope="session")
def checkpoint(_tiny, tmp_path_factory):
    """A real checkpoint of `tiny`, rounded to 4 bits."""
    import copy

    from edgequant.quantization import checkpoint as checkpoints
    from edgequant.quantization.ptq.quantize import quantize
    from edgequant.quantization.scheme import parse_scheme

    model, scheme = copy.deepcopy(_tiny.model), parse_scheme("w4a8-g32+emb4")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    quantize(model, scheme)
    folder = tmp_path_factory.mktemp("checkpoint") / "checkpoint"
    checkpoints.save(model, _tiny.tokenizer, folder, scheme, parameters=parameters, made_from="tiny")
    return folder


GOOD = {"size/reduction_vs_fp16": 71.5, "domain/perplexity": 25.0}
BASELINE = {"domain/perplexity": 24.0}


@pytest.fixture
def fresh_process():
    """Asked for by tests that measure again: figures that a test makes up do not reproduce."""


@pytest.fixture(autouse=True)
def figures_that_are_believed(request, monkeypatch):
    """Nothing is measured again, unless a test asks for `fresh_process`."""
    from edgequant_registry import remeasure

    if "fresh_process" not in request.fixturenames:
        monkeypatch.setattr(remeasure, "remeasure", lambda *_: remeasure.Remeasured((), "believed by a test"))


@pytest.fixture
def register(store, checkpoint):
    """Register the checkpoint with given metrics, as `qat` does; returns the version."""
    from edgequant import tracking
    from edgequant.evaluation.evidence_file import Scores
    from edgequant.workflows.steps.register import register_version

    def filed(metrics=GOOD, *, name="edgequant-tiny", baseline=BASELINE, folder=checkpoint, items=None, **more):
        names = {"model": name.removeprefix("edgequant-"), "scheme": "w4a8-g32+emb4", "variant": "qat"}
        scores = {"measured": Scores(metrics, items or {}), "baseline": Scores(baseline)}
        with tracking.workflow_run("qat", {"of": "a test"}):
            return register_version(folder, **names, **(scores | more))

    return filed
