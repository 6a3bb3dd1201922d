"""`import edgequant`: light, and the field's verbs on a model that somebody has in hand."""

from __future__ import annotations

import re
import subprocess
import sys
from textwrap import dedent

import pytest
import torch
from transformers import AutoModelForCausalLM

import edgequant as api
from edgequant.errors import UserError
from edgequant.evaluation.tasks.boolq import BOOLQ
from edgequant.evaluation.tasks.registry import add_task, known_tasks
from edgequant.evaluation.tasks.task import DataSet, Evaluation, Metric, Task

QUICK = {"tasks": ("domain_perplexity",), "limit": 20, "window": 256, "bootstrap_resamples": 20}
ONLY_VERSION = """
import sys, time
started = time.perf_counter()
import edgequant
print(edgequant.__version__)
print(time.perf_counter() - started)
print([name for name in ("torch", "transformers", "mlflow", "numpy", "yaml") if name in sys.modules])
"""


def test_the_version_is_known_at_once_and_without_torch(environment):
    runs = []
    for _ in range(3):  # the first one may compile bytecode or wait for the disk
        done = subprocess.run([sys.executable, "-c", ONLY_VERSION], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        version, seconds, heavy = done.stdout.splitlines()
        assert (version, heavy) == (api.__version__, "[]")
        runs.append(float(seconds))
    assert min(runs) < 0.3


def test_everything_that_is_offered_is_there_and_nothing_else():
    assert all(callable(getattr(api, name)) for name in api.__all__ if name != "__version__")
    assert set(api.__all__) <= set(dir(api))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        api.quantise  # noqa: B018


def test_quantize_evaluate_save_and_load_by_the_names_of_schemes(tiny, tmp_path):
    before = api.evaluate(tiny.model, tiny.tokenizer, **QUICK).metrics
    errors = api.quantize(tiny.model, "w4a8-g32+emb4")
    after = api.evaluate(tiny.model, tiny.tokenizer, **QUICK).metrics
    assert {row["bits"] for row in errors} == {4}
    assert before["domain/perplexity"] != after["domain/perplexity"]
    saved = api.save(tiny.model, tiny.tokenizer, tmp_path / "small")
    assert saved.scheme == api.parse_scheme("w4a8-g32+emb4")
    loaded = api.load(str(tmp_path / "small"), device="cpu")
    again = api.evaluate(loaded.model, loaded.tokenizer, checkpoint=tmp_path / "small", **QUICK).metrics
    assert again["domain/perplexity"] == pytest.approx(after["domain/perplexity"], rel=1e-6)
    assert again["size/bits_per_parameter"] == pytest.approx(8 * saved.weight_bytes / before["size/parameters"])
    tokens = torch.arange(20)[None]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    torch.testing.assert_close(plain(input_ids=tokens).logits, loaded.model(input_ids=tokens).logits)


def test_what_any_training_loop_trains_is_what_convert_leaves(tiny):
    tokens = torch.arange(64).view(2, 32)
    api.prepare(tiny.model, "w4-g32", learnable_scales=True)
    optimizer = torch.optim.AdamW(tiny.model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = tiny.model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        trained = tiny.model(input_ids=tokens).logits
        api.convert(tiny.model)
        torch.testing.assert_close(tiny.model(input_ids=tokens).logits, trained, rtol=1e-4, atol=1e-4)
    assert losses[-1] < losses[0]


def test_a_model_that_was_never_quantized_is_not_saved_as_a_checkpoint(tiny, tmp_path):
    with pytest.raises(UserError, match=r"edgequant\.quantize or edgequant\.prepare"):
        api.save(tiny.model, tiny.tokenizer, tmp_path / "small", "w8")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_never_says_another_scheme_than_its_model_has(tiny, tmp_path):
    api.quantize(tiny.model, "w4-g32")
    with pytest.raises(UserError, match=r"scheme must be w4-g32, which the model was quantised with, got 'w8'"):
        api.save(tiny.model, tiny.tokenizer, tmp_path / "small", "w8")
    assert list(tmp_path.iterdir()) == []
    api.save(tiny.model, tiny.tokenizer, tmp_path / "small", "w4-g32")
    loaded = api.load(str(tmp_path / "small"), device="cpu")
    again = api.save(loaded.model, loaded.tokenizer, tmp_path / "again")
    first, second = (folder / "model.safetensors" for folder in (tmp_path / "small", again.folder))
    assert again.scheme.name == "w4-g32" and first.read_bytes() == second.read_bytes()
    with pytest.raises(UserError, match="quantised with w4-g32 already"):
        api.quantize(loaded.model, "w8")


def test_the_verbs_are_refused_out_of_order(tiny, tmp_path):
    with pytest.raises(UserError, match=r"call edgequant\.prepare"):
        api.convert(tiny.model)
    api.prepare(tiny.model, "w8")
    with pytest.raises(UserError, match=r"call edgequant\.convert"):
        api.save(tiny.model, tiny.tokenizer, tmp_path / "small")
    for verb in (api.prepare, api.quantize):
        with pytest.raises(UserError, match="model is quantised with w8 already"):
            verb(tiny.model, "w8")
    api.convert(tiny.model)
    assert api.save(tiny.model, tiny.tokenizer, tmp_path / "small").weight_bytes > 0


def batches(shape=(1, 8), dtype=torch.int64):
    return [torch.zeros(shape, dtype=dtype)]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"scheme": "w4g32"}, "scheme 'w4g32' is unknown. Did you mean w4-g32?"),
        ({"scheme": "w4-g31"}, "does not divide the 128 input features of model.layers.0.self_attn.q_proj"),
        ({"scheme": "bnb-nf4"}, "bitsandbytes' own, which quantises while it loads: use `edgequant ptq`"),
        ({"scheme": "w8a8-static"}, "scheme w8a8-static has static activation ranges; give calibration text"),
        ({"scheme": "w8", "method": "gtpq"}, "PTQ method 'gtpq' is unknown. Did you mean gptq?"),
        ({"scheme": "w8", "method": "gptq"}, "PTQ method gptq decides by activations; give calibration text"),
        ({"scheme": "w8", "calibration": ["a text"]}, "of int64, got one of str"),
        ({"scheme": "w8", "calibration": batches((8,))}, r"[batch, length] of int64, got one of torch.int64 [8]"),
        ({"scheme": "w8", "calibration": batches(dtype=torch.float32)}, "got one of torch.float32 [1, 8]"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_cannot_be_quantized_so_is_refused_by_name_and_leaves_the_model_as_it_was(asked, said, tiny):
    before = [type(module) for module in tiny.model.modules()]
    with pytest.raises(UserError, match=re.escape(said)):
        api.quantize(tiny.model, **asked)
    assert [type(module) for module in tiny.model.modules()] == before
    assert {row["bits"] for row in api.quantize(tiny.model, "w8")} == {8}


def test_evaluate_names_a_task_that_it_does_not_know_and_one_that_it_left_out(tiny):
    with pytest.raises(UserError, match=r"'bolq' is unknown\. Did you mean boolq\?"):
        api.evaluate(tiny.model, tiny.tokenizer, tasks=["bolq"])
    with pytest.raises(UserError, match=r"sequence of names, such as \['boolq'\]"):
        api.evaluate(tiny.model, tiny.tokenizer, tasks="boolq")
    measured = api.evaluate(tiny.model, tiny.tokenizer, tasks=["boolq"])
    assert "boolq was left out: no data were given for it" in measured.notes
    assert not [name for name in measured.metrics if name.startswith("boolq/")]


# ------------------------------------------------------------------------------------------------ documented examples


def documented(verb: str) -> str:
    """The code of a docstring: the module's first indented block, or what stands below a function's `Example:`."""
    import edgequant.api as module

    if verb == "module":
        block = re.search(r"\n\n((?: {4}.*\n|\n)+)", module.__doc__)[1]
        return dedent(block)
    return dedent(re.search(r"Example:\n((?: {8}.*\n|\n)+)", getattr(module, verb).__doc__)[1])


@pytest.mark.parametrize("verb", ["module", "quantize", "prepare", "evaluate"])
def test_the_documented_example_runs_as_it_stands_on_any_model(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = documented(verb)
    assert "import edgequant" in code and "smollm2-135m" in code
    names: dict = {}
    exec(code.replace("smollm2-135m", "tiny"), names)
    if verb == "module":
        perplexity, bits = map(float, capsys.readouterr().out.split())
        assert perplexity > 1 and 4 < bits < 6
        assert names["source"].location.endswith("smollm2-w4a8")
    if verb == "quantize":
        assert names["worst"]["output_error"] == max(row["output_error"] for row in names["errors"])
    if verb == "evaluate":
        assert "boolq was left out" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- a task of this process


def parity(answer: float, name: str = "parity_of_names", **changed) -> Task:
    fields = {
        "name": name,
        "score": lambda model, data, settings: Evaluation({f"{name}/accuracy": answer * len(data[f"{name}_rows"])}),
        "data": (DataSet(name=f"{name}_rows", load=lambda split, data_dir: [1, 2, 3]),),
        "protocol": "Three rows.",
        "display": {f"{name}/accuracy": Metric("parity", "%", "higher")},
    }
    return Task(**fields | changed)


@pytest.fixture
def own_tasks(monkeypatch):
    """None before and after the test."""
    from edgequant.evaluation.tasks import registry

    monkeypatch.setattr(registry, "_of_this_process", {})


def test_a_task_that_is_added_is_known_measured_and_replaced_by_its_successor(tiny, own_tasks):
    before = known_tasks()
    task = parity(1.0)
    add_task(task)
    assert known_tasks() == (*before, task)
    assert api.evaluate(tiny.model, tiny.tokenizer, tasks=["parity_of_names"]).metrics["parity_of_names/accuracy"] == 3
    add_task(parity(2.0))  # as a notebook does whose cell is run again
    assert len(known_tasks()) == len(before) + 1
    assert api.evaluate(tiny.model, tiny.tokenizer, tasks=["parity_of_names"]).metrics["parity_of_names/accuracy"] == 6
    with pytest.raises(UserError, match="Did you mean parity_of_names"):
        api.evaluate(tiny.model, tiny.tokenizer, tasks=["parity_of_name"])


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (parity(1.0, "boolq"), "task boolq .* must have names of its own, got boolq's"),
        (parity(1.0, group="boolq", display={}), r"metrics boolq/\.\.\..* must have names of its own, got boolq's"),
        (parity(1.0, data=(DataSet(name=BOOLQ.data[0].name),)), "data set 'boolq' must have a name of its own"),
        ("boolq", "add_task must be given a Task, got str"),
    ],
    ids=["name", "group", "data set", "no task"],
)
def test_a_task_that_takes_anothers_names_is_not_added(task, said, own_tasks):
    before = known_tasks()
    with pytest.raises(UserError, match=said):
        add_task(task)
    assert known_tasks() == before
