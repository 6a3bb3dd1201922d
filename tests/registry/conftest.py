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


@pytest.fixture(scope="session")
def measured(_tiny, checkpoint):
    """What `register_version` takes of a checkpoint that was measured: domain text, questions and a guard text."""
    from edgequant import models
    from edgequant.evaluation.evidence_file import Conditions, Scores
    from edgequant.evaluation.settings import EvaluationSettings
    from edgequant.evaluation.suite import evaluate_model
    from edgequant.evaluation.tasks.registry import find_data_set, find_task
    from edgequant.workflows.steps.data import rows_of

    tasks = ("domain_perplexity", "domain_qa", "guard")
    settings = EvaluationSettings(tasks=tasks, limit=20, window=256, max_new_tokens=1, bootstrap_resamples=20)
    names = [each.name for task in tasks[:2] for each in find_task(task).data]
    data = {name: rows_of(find_data_set(name), "test", None) for name in names}
    data["guard"] = [f"Water rose by {number} metres, and the road to the hospital was closed." for number in range(9)]
    quantized = models.load(str(checkpoint), dtype="float32", device="cpu")
    found = evaluate_model(quantized.model, quantized.tokenizer, data, settings, checkpoint=checkpoint)
    before = evaluate_model(_tiny.model, _tiny.tokenizer, data, settings)
    conditions = Conditions.of(settings, data, data_dir=None, device="cpu", dtype="float32")
    return {
        "measured": Scores(found.metrics, found.items),
        "baseline": Scores(before.metrics, before.items),
        "conditions": conditions,
    }


GOOD = {"size/reduction_vs_fp16": 71.5, "domain/perplexity": 25.0}
BASELINE = {"domain/perplexity": 24.0}


@pytest.fixture
def fresh_process():
    """Asked for by tests that measure again: figures that a test makes up do not reproduce."""


@pytest.fixture(autouse=True)
def figures_that_are_believed(request, monkeypatch):
    """Nothing is measured again, unless a test asks for `fresh_process`."""
    from edgequant_registry.evidence import remeasure

    if "fresh_process" not in request.fixturenames:
        monkeypatch.setattr(remeasure, "remeasure", lambda *_: remeasure.Remeasured((), "believed by a test"))


@pytest.fixture
def register(store, checkpoint):
    """Register the checkpoint with given metrics, as `qat` does; returns the version."""
    from edgequant import tracking
    from edgequant.evaluation.evidence_file import Scores
    from edgequant.workflows.steps.register import register_version

    def filed(metrics=GOOD, *, name="edgequant-tiny", baseline=BASELINE, folder=checkpoint, **measured):
        if isinstance(baseline, Scores):
            measured["baseline"] = baseline
        names = {"model": name.removeprefix("edgequant-"), "scheme": "w4a8-g32+emb4", "variant": "qat"}
        scores = {"measured": Scores(metrics), "baseline": Scores(baseline)} | measured
        with tracking.workflow_run("qat", {"of": "a test"}):
            return register_version(folder, **names, **scores)

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
