"""`examples/`: each runs as its first lines say, on `tiny`, and what it prints and writes is true."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import edgequant
from edgequant import tracking
from edgequant.corpora.disaster.corpus import bundled_documents
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.statistics.sampling import draw_evenly
from edgequant.evaluation.tasks.task import Task
from edgequant.extensions import TASKS
from edgequant.workflows.ptq import ptq
from edgequant.workflows.settings import RunSettings, WorkflowResult

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = EXAMPLES / "edgequant.ipynb"


@pytest.fixture(autouse=True)
def tables_made(environment: dict[str, str], _empty_store: Path, tmp_path: Path) -> None:
    """The store that `environment` names has its tables already, whose making takes seconds."""
    shutil.copy(_empty_store, tmp_path / "mlflow.db")


def printed_by(script: str, *arguments: str, folder: Path, environment: dict[str, str]) -> str:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@torch.inference_mode()
def perplexity(model, tokenizer, *, documents: int, window: int) -> float:
    """exp of the mean loss of every token of test documents, each in pieces that the model reads `window` tokens of."""
    english = [(each.domain, each.text) for each in bundled_documents("test") if each.language == "en"]
    nats = count = 0.0
    for _, text in draw_evenly(english, documents, seed=0):
        tokens = tokenizer(text, verbose=False)["input_ids"]
        read = [tokenizer.eos_token_id, *tokens]
        for start in range(0, len(tokens), window):
            end = min(start + window, len(tokens))
            logits = model(input_ids=torch.tensor([read[max(0, end - window) : end]])).logits[0, start - end :]
            wanted = torch.tensor(tokens[start:end])
            nats += float(torch.nn.functional.cross_entropy(logits.double(), wanted, reduction="sum"))
            count += end - start
    return math.exp(nats / count)


# ---------------------------------------------------------------------------------------------------------- scripts


@pytest.mark.long
def test_quantize_and_compare_prints_what_the_checkpoint_that_it_saves_is_worth(tiny, environment, tmp_path):
    place = {"folder": tmp_path, "environment": environment}
    out = printed_by("quantize_and_compare.py", "--model", "tiny", "--output", "small", **place)
    table = dict(re.findall(r"^(floating point|rtn|gptq|awq) +(.*)$", out, re.M))
    rows = {
        name: [float(number) for number in re.findall(r"[\d.]+", line.replace("95 %", ""))]
        for name, line in table.items()
    }
    assert list(rows) == ["floating point", "rtn", "gptq", "awq"]
    assert all(low <= value <= high for value, low, high, _ in rows.values())
    best = re.search(r"best on validation text: (\w+), saved in small, ([\d.]+) MB", out)
    others = [value for name, (value, *_) in rows.items() if name != best[1]]
    assert all(abs(rows[best[1]][0] - value) > 0.02 for value in others)  # by which the saved one is told from them
    saved = edgequant.load(str(tmp_path / "small"), device="cpu")
    assert rows[best[1]][0] == pytest.approx(
        perplexity(saved.model, saved.tokenizer, documents=5, window=512), abs=0.006
    )
    assert rows["floating point"][0] == pytest.approx(
        perplexity(tiny.model, tiny.tokenizer, documents=5, window=512), abs=0.006
    )
    size, parameters = (tmp_path / "small" / "model.safetensors").stat().st_size, tiny.model.num_parameters()
    assert float(best[2]) == pytest.approx(size / 1e6, abs=0.006)
    assert rows[best[1]][3] == pytest.approx(8 * size / parameters, rel=0.05)  # the file's header is none of them
    assert rows["floating point"][3] == 32
    assert "\nIn a flood warning," in out


@pytest.mark.long
def test_qat_of_a_folder_trains_a_folder_on_a_folder(tiny_folder, environment, tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(4):
        lines = [
            f"Gauge {each} at bridge {number} rose by {each * number} centimetres overnight." for each in range(80)
        ]
        (tmp_path / "texts" / f"{number}.txt").write_text("\n".join(lines))
    given = ["--model", str(tiny_folder), "--dataset", "texts", "--steps", "4", "--sequence_length", "64"]
    out = printed_by("qat_of_a_folder.py", *given, folder=tmp_path, environment=environment)
    numbers = re.search(r"^PTQ: ([\d.]+) becomes ([\d.]+),.*\n.*, then PTQ: ([\d.]+); QAT: ([\d.]+)$", out, re.M)
    run_id, folder, bits = (
        re.search(rf"^{each}", out, re.M)[1]
        for each in (r"run (\w{32})$", r"checkpoint (.*), ", r"checkpoint .*, ([\d.]+) bits per parameter$")
    )
    store = tracking_client(environment)
    metrics = store.get_run(run_id).data.metrics
    nested = store.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{run_id}'")
    logged = {run.data.tags["edgequant.variant"]: run.data.metrics["domain/perplexity"] for run in nested}
    shown = dict(zip(("baseline", "ptq", "control-ptq", "qat"), map(float, numbers.groups()), strict=True))
    assert shown == {variant: pytest.approx(logged[variant], abs=0.006) for variant in shown}
    delivered = re.search(r"^delivered: (\S+)$", out, re.M)[1]
    assert shown[delivered] == pytest.approx(metrics["domain/perplexity"], abs=0.006)
    assert float(bits) == pytest.approx(metrics["size/bits_per_parameter"], abs=0.006)
    model, tokenizer, source = edgequant.load(folder, device="cpu")
    assert Path(folder).is_relative_to(tmp_path) and source.kind == "folder"
    # In the compute type that it was measured in, bfloat16 where the CPU has it: batches round differently.
    assert shown[delivered] == pytest.approx(perplexity(model, tokenizer, documents=5, window=512), rel=0.01)


def tracking_client(environment: dict[str, str]):
    import mlflow

    return mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])


@pytest.fixture
def flood_cloze():
    """The file as a package's module, which an entry point imports."""
    spec = importlib.util.spec_from_file_location("flood_cloze", EXAMPLES / "add_a_task.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.inference_mode()
def right_answers(model, tokenizer, rows: list[dict]) -> float:
    """Share in per cent of rows whose first ending has the greater log-likelihood, from plain logits."""

    def likelihood(context: str, ending: str) -> float:
        tokens = tokenizer(context + ending, return_tensors="pt")["input_ids"]
        begin = len(tokenizer(context)["input_ids"])
        steps = model(input_ids=tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])
        return float(steps[begin - 1 :].sum())

    right = [
        likelihood(row["context"], row["endings"][0]) > likelihood(row["context"], row["endings"][1]) for row in rows
    ]
    return 100 * sum(right) / len(right)


@pytest.mark.long
def test_add_a_task_scores_a_model_before_and_after_quantization(tiny, flood_cloze, environment, tmp_path):
    out = printed_by("add_a_task.py", "--model", "tiny", "--scheme", "w2-g32", folder=tmp_path, environment=environment)
    shown = {name: float(value) for name, value in re.findall(r"^(floating point|w2-g32) +([\d.]+) % \(", out, re.M)}
    floating = right_answers(tiny.model, tiny.tokenizer, flood_cloze.ROWS)
    edgequant.quantize(tiny.model, "w2-g32")
    quantized = right_answers(tiny.model, tiny.tokenizer, flood_cloze.ROWS)
    assert shown == pytest.approx({"floating point": floating, "w2-g32": quantized}, abs=0.06)
    assert f"{len(flood_cloze.ROWS)} sentences" in out


def test_the_task_can_be_registered_as_its_file_says(flood_cloze):
    group, name = re.search(r'entry-points\."([\w.]+)"\]\n +flood_cloze = "[\w.]+:(\w+)"', flood_cloze.__doc__).groups()
    assert group == TASKS and isinstance(getattr(flood_cloze, name), Task)


# --------------------------------------------------------------------------------------------------------- notebook


@pytest.mark.long
def test_the_notebook_runs_and_shows_what_its_workflow_logged(environment, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (at,) = (at for at, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell('MODEL, STEPS = "tiny", 8'))
    client = NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=environment)  # raises where a cell fails
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")

    table = {name: float(value) for name, value in re.findall(r"^(\S.*?) +([\d.]+) +[\d.]+ bits per p", printed, re.M)}
    first, last = map(float, re.search(r"loss ([\d.]+) at the first step, ([\d.]+) at the last of 8", printed).groups())
    assert last < first
    assert float(re.search(r"largest difference of a logit by convert: (\S+)", printed)[1]) < 1e-4
    before, after = map(float, re.search(r"w3-g32\+emb8: PTQ ([\d.]+), QAT ([\d.]+)", printed).groups())
    assert before == table["w3-g32+emb8"] and after < before
    made = edgequant.load(str(tmp_path / "outputs" / "notebook"), device="cpu")
    assert after == pytest.approx(perplexity(made.model, made.tokenizer, documents=5, window=512), abs=0.006)

    run_id, folder = re.search(r"run (\w{32}), checkpoint (.*)", printed).groups()
    logged = tracking_client(environment).get_run(run_id).data.metrics["domain/perplexity"]
    assert float(re.search(r"changes perplexity by ([+-][\d.]+)", printed)[1]) == pytest.approx(
        logged - table["w4-g32+emb8"], abs=0.011
    )
    rounded = edgequant.load(folder, device="cpu")
    assert logged == pytest.approx(perplexity(rounded.model, rounded.tokenizer, documents=5, window=512), rel=1e-5)


def test_the_notebook_is_committed_without_outputs():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


# ---------------------------------------------------------------------------------------------- workflows from Python


def test_a_workflow_called_from_python_returns_its_run_metrics_and_checkpoint(store):
    quick = EvaluationSettings(tasks=("domain_perplexity",), limit=20, window=256, bootstrap_resamples=20)
    result = ptq(model="tiny", scheme="w8", evaluation=quick, run=RunSettings(device="cpu", dtype="float32"))
    assert isinstance(result, WorkflowResult)
    run = store.get_run(result.run_id)
    assert run.info.status == "FINISHED" and tracking.client().get_run(result.run_id).info.run_id == result.run_id
    assert result.metrics["domain/perplexity"] > 1
    assert result.metrics == pytest.approx({name: tracking.all_metrics(result.run_id)[name] for name in result.metrics})
    assert [row["variant"] for row in result.rows] == ["baseline", "ptq"]
    loaded = edgequant.load(result.checkpoint, device="cpu")
    expected = perplexity(loaded.model, loaded.tokenizer, documents=1, window=256)
    assert result.metrics["domain/perplexity"] == pytest.approx(expected, rel=1e-5)
