"""A promoted version behind MLflow: its server's paths, its requirements, its code; with no checkout near."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import begin, post, until

from edgequant import models
from edgequant_registry import packaging
from edgequant_registry.serving.http import hook
from edgequant_registry.serving.http.hook import SERVER, SERVING, put_around_mlflows_app
from edgequant_registry.serving.waiting import TIMEOUT

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
def server(place: Path) -> Iterator[Callable[..., Any]]:
    """The app that uvicorn finds at MLflow's module, over the champion: server("/v1/...", {...}) -> (status, body)."""
    from fastapi.testclient import TestClient
    from uvicorn.importer import import_from_string

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_IS_IN_SERVING_ENVIRONMENT", "false")  # put back afterwards
        patch.setenv(SERVING, f"models:/{NAME}@champion")
        patch.delitem(sys.modules, SERVER, raising=False)
        client = TestClient(import_from_string(f"{SERVER}:app"))

    def ask(path: str, sent: Any) -> tuple[int, Any]:
        answer = client.post(path, **_sent(sent)) if sent is not None else client.get(path)
        return answer.status_code, answer.json()

    yield ask
    sys.modules.pop(SERVER, None)


def _sent(sent: Any) -> dict[str, Any]:
    return {"content": sent, "headers": {"Content-Type": "text/csv"}} if isinstance(sent, bytes) else {"json": sent}


def test_a_completion_is_answered_as_openai_does_on_either_path(server: Any) -> None:
    sent = {"model": "any", "prompt": "The water is", "max_tokens": 4}
    status, body = server("/invocations", sent)
    assert status == 200 and (body["object"], body["model"]) == ("text_completion", f"{NAME}/1")
    (choice,) = body["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"} and choice["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16}
    status, other = server("/v1/completions", sent)
    assert status == 200 and other["choices"] == body["choices"] and other["id"] != body["id"]


@pytest.mark.long
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
        ("/invocations", {"inputs": [{"prompt": "a", "stream": True}]}, "stream must be left out of lists"),
        ("/invocations", {"inputs": ["a"] * 65}, "there must be at most 64 requests in a list, got 65"),
        ("/invocations", {"inputs": 5}, "requests must be an object, a text or a list of these, got"),
        ("/invocations", {"inputs": [[["a"]]]}, "a request must be an object with messages or a prompt, got"),
        ("/invocations", {"dataframe_split": {"data": [[1, 2], [3]]}}, "a request must be an object with messages"),
        ("/invocations", {"dataframe_records": 7}, ""),
        ("/invocations", {"question": "a"}, "The input must be a JSON dictionary with exactly one of the input fields"),
        ("/invocations", b'a,b\n"1,2\n3,4,5', ""),
    ],
    ids=range(16),
)
def test_a_bad_request_gets_one_line_with_status_400(server: Any, path: str, sent: Any, said: str) -> None:
    status, body = server(path, sent)
    assert status == 400 and said in body["message"] and "\n" not in body["message"]
    assert (
        body["error"]["message"] == body["message"] and "stack_trace" not in body and "Traceback" not in body["message"]
    )


def test_the_models_that_are_served_are_listed(server: Any) -> None:
    assert [one["id"] for one in server("/v1/models", None)[1]["data"]] == [f"{NAME}/1"]
    assert server(f"/v1/models/{NAME}/1", None)[1]["id"] == f"{NAME}/1"
    status, body = server("/v1/models/other", None)
    assert status == 404 and "unknown request URL: GET /v1/models/other" in body["error"]["message"]


def test_where_mlflow_serves_by_another_module_a_line_says_that_v1_is_not_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hook, "_log", logging.getLogger("as uvicorn's, before a server of another test set that up"))
    monkeypatch.delitem(sys.modules, SERVER, raising=False)
    put_around_mlflows_app(lambda app: app)
    assert not caplog.messages  # as a model in Python: nothing is served
    monkeypatch.setenv(SERVING, "somewhere")
    put_around_mlflows_app(lambda app: app)
    assert "/invocations alone answers, not /v1" in caplog.text


@pytest.mark.long
def test_a_server_that_decodes_ends_within_five_seconds_of_sigterm(
    place: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    (folder,) = {path.parent for path in place.rglob("MLmodel")}
    environment |= {SERVING: str(folder), TIMEOUT: "60"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), f"{SERVER}:app"]
    log = tmp_path / "log"
    process = subprocess.Popen(command, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT)
    try:
        assert until(lambda: _answers(port), 60), log.read_text()[-2000:]
        long = {"prompt": ["a"] * 64, "max_tokens": 2000, "temperature": 1.0}
        stream = begin(port, "/v1/completions", long | {"stream": True})
        assert stream.recv(100).startswith(b"HTTP/1.1 200")  # it decodes, and nobody reads on
        whole = begin(port, "/v1/completions", long)
        time.sleep(0.2)
        began = time.monotonic()
        process.terminate()
        process.wait(30)
        assert time.monotonic() - began < 5
        assert whole.recv(1000).startswith(b"HTTP/1.1 503")
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return post(port, "/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
    except OSError:
        return False


def test_what_is_served_loads_as_a_model_still(place: Path) -> None:
    assert models.load(f"models:/{NAME}@champion", device="cpu").model.config.edgequant_model == "tiny"


def test_requirements_can_be_had_from_any_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """No index but torch's own has builds with a label such as +cpu; llama.cpp comes where a file needs it."""
    installed = {"torch": "2.13.0+cpu", "xllamacpp": "2026.10.11549"}
    monkeypatch.setattr(packaging.metadata, "version", lambda name: installed.get(name, "1.2.3"))
    found = packaging.requirements(has_gguf=False)
    assert any(line.startswith("psutil==") for line in found), (
        "edgequant.disk.leftovers imports it, and mlflow asks not for it"
    )
    assert "torch==2.13.0" in found and not [line for line in found if "+" in line or "xllamacpp" in line]
    assert 'xllamacpp==2026.10.11549; sys_platform == "linux"' in packaging.requirements(has_gguf=True)


@pytest.mark.long
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
