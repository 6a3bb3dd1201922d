"""A promoted version behind MLflow: its server's paths, its requirements, its code; with no checkout near."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgequant import models
from edgequant_registry import packaging
from edgequant_registry.serving.openai_paths import SERVER

NAME = "edgequant-tiny"
GOOD = {"size/reduction_vs_fp16": 71.5, "domain/perplexity": 25.0}


@pytest.fixture(scope="module")
def place(open_store: Any, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a store in which one version is servable, and is the champion."""
    from edgequant import tracking
    from edgequant.evaluation.evidence_file import Scores
    from edgequant.workflows.steps.register import register_version

    folder = tmp_path_factory.mktemp("served")
    names = {"model": "tiny", "scheme": "w4a8-g32+emb4", "variant": "qat"}
    with open_store(folder) as client:
        with tracking.workflow_run("qat", {"of": "a test"}):
            register_version(checkpoint, **names, measured=Scores(GOOD), baseline=Scores({"domain/perplexity": 24.0}))
        packaging.make_servable(NAME, "1")
        client.set_registered_model_alias(NAME, "champion", "1")
        yield folder


@pytest.fixture(scope="module")
def server(place: Path) -> Callable[..., Any]:
    """MLflow's own app over the champion: server("/invocations", {...}) -> (status, body)."""
    import fastapi
    import mlflow
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, SERVER, types.ModuleType(SERVER))
        patch.setattr(fastapi, "FastAPI", fastapi.FastAPI)  # put back afterwards
        patch.delenv("MLFLOW_IS_IN_SERVING_ENVIRONMENT", raising=False)
        app = scoring_server.init(mlflow.pyfunc.load_model(f"models:/{NAME}@champion"))
    client = TestClient(app)

    def ask(path: str, sent: Any) -> tuple[int, Any]:
        answer = client.post(path, json=sent) if sent is not None else client.get(path)
        return answer.status_code, answer.json()

    return ask


def test_a_completion_is_answered_as_openai_does_on_either_path(server: Any) -> None:
    sent = {"model": "any", "prompt": "The water is", "max_tokens": 4}
    status, body = server("/invocations", sent)
    assert status == 200 and (body["object"], body["model"]) == ("text_completion", f"{NAME}/1")
    (choice,) = body["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"} and choice["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16}
    status, other = server("/v1/completions", sent)
    assert status == 200 and other["choices"] == body["choices"] and other["id"] != body["id"]


def test_several_prompts_and_requests_are_answered_in_their_order(server: Any) -> None:
    prompts = ["The water is", "Boil"]
    texts = [server("/invocations", {"prompt": one, "max_tokens": 3})[1]["choices"][0]["text"] for one in prompts]
    _, several = server("/invocations", {"prompt": prompts, "max_tokens": 3})
    assert [choice["text"] for choice in several["choices"]] == texts
    requests = [{"prompt": one, "max_tokens": 3} for one in prompts]
    frame = {"columns": ["prompt", "max_tokens"], "data": [[prompts[0], 3], [prompts[1], None]]}
    for sent in ({"inputs": requests}, {"dataframe_split": frame}):
        answers = server("/invocations", sent)[1]["predictions"]
        assert answers[0]["choices"][0]["text"] == texts[0]
        assert answers[1]["choices"][0]["text"].startswith(texts[1])
    said = server("/invocations", {"inputs": prompts})[1]["predictions"]  # as MLflow's gateway asks
    assert [one.startswith(text) for one, text in zip(said, texts, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("path", "sent", "said"),
    [
        ("/invocations", {"prompt": "a", "max_tokens": 0}, "max_tokens must be a whole number, 1 or more, got 0"),
        ("/invocations", {"prompt": "a", "temperature": "hot"}, "temperature must be a number from 0 to 2, got 'hot'"),
        (
            "/invocations",
            {"prompt": "a" * 3000},
            "the prompt has 3000 tokens, and with an answer it must fit a context",
        ),
        ("/invocations", {"messages": []}, "messages must be a list of at least one message, got []"),
        ("/invocations", {"inputs": [{"prompt": 5}]}, "prompt must be a text, got 5"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "this one has none; send a prompt"),
        ("/v1/chat/completions", {"prompt": "a"}, "messages must be in the body, a JSON object; add it"),
        ("/v1/completions", [], "prompt must be in the body, a JSON object; add it"),
    ],
)
def test_a_bad_request_gets_one_line_with_status_400(server: Any, path: str, sent: Any, said: str) -> None:
    status, body = server(path, sent)
    assert status == 400 and said in body["message"] and "\n" not in body["message"]
    assert body["error"]["message"] == body["message"] and "stack_trace" not in body


def test_the_models_that_are_served_are_listed(server: Any) -> None:
    assert [one["id"] for one in server("/v1/models", None)[1]["data"]] == [f"{NAME}/1"]


def test_what_is_served_loads_as_a_model_still(place: Path) -> None:
    assert models.load(f"models:/{NAME}@champion", device="cpu").model.config.edgequant_model == "tiny"


def test_requirements_can_be_had_from_any_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """No index but torch's own has builds with a label such as +cpu; llama.cpp comes where a file needs it."""
    installed = {"torch": "2.13.0+cpu", "xllamacpp": "2026.10.11549"}
    monkeypatch.setattr(packaging.metadata, "version", lambda name: installed.get(name, "1.2.3"))
    found = packaging.requirements(has_gguf=False)
    assert "torch==2.13.0" in found and not [line for line in found if "+" in line or "xllamacpp" in line]
    assert 'xllamacpp==2026.10.11549; sys_platform == "linux"' in packaging.requirements(has_gguf=True)


def test_a_champion_needs_no_checkout_to_be_served(place: Path, tmp_path: Path) -> None:
    """A process that cannot import edgequant from anywhere else loads the version with the code that lies beside it."""
    code = (
        "import importlib.util, sys; assert importlib.util.find_spec('edgequant') is None\n"
        "assert importlib.util.find_spec('edgequant_registry') is None\n"
        "import mlflow; mlflow.set_tracking_uri(sys.argv[1])\n"
        f"model = mlflow.pyfunc.load_model('models:/{NAME}@champion')\n"
        "print(model.predict({'prompt': 'Boil', 'max_tokens': 3})['usage']['completion_tokens'])\n"
    )
    # the editable install puts our sources on the path: leave them out
    blocker = (
        "import sys; sys.path = [p for p in sys.path if p.rsplit('/', 1)[-1] not in ('platform', 'tune', 'registry')]\n"
    )
    command = [sys.executable, "-c", blocker + code, f"sqlite:///{place}/mlflow.db"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout.strip().endswith("3"), done.stderr[-2000:]
