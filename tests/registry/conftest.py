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
def register(store, checkpoint):
    """Register the checkpoint with given metrics, as `qat` does; returns the version."""
    from edgequant import tracking
    from edgequant.workflows.steps.register import register_version

    def filed(metrics=GOOD, *, name="edgequant-tiny", baseline=BASELINE, folder=checkpoint):
        names = {"model": name.removeprefix("edgequant-"), "scheme": "w4a8-g32+emb4", "variant": "qat"}
        with tracking.workflow_run("qat", {"of": "a test"}):
            return register_version(folder, **names, metrics=metrics, baseline=baseline)

    return filed


@pytest.fixture
def models(store, monkeypatch):
    """Make registered models, each with versions that have no files: for what happens to aliases alone."""
    import itertools

    from edgequant_registry import promotion

    monkeypatch.setattr(promotion, "make_servable", lambda name, version: None)
    numbers = itertools.count()

    def made(*, versions):
        name = f"edgequant-model{next(numbers)}"
        store.create_registered_model(name)
        for _ in range(versions):
            store.create_model_version(name, source="nowhere", tags={"size/checkpoint_gb": "0.5"})
        return name

    return made


@pytest.fixture
def judged():
    """What a policy of one gate said of a version beside a champion: that it passes."""
    from racing import judgement

    return judgement
