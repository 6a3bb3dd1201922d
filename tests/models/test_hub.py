"""Whether the hub can be reached is known in seconds, through proxies and past hosts that never answer."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from edgequant import models
from edgequant.errors import UserError
from edgequant.models import hub
from edgequant.models.origin import origin

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def online(monkeypatch, tmp_path) -> None:
    """The hub's client switched on, its cache empty, no proxy."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[str]:
    """Address of something that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """Address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def no_answer(*_: object, **__: object) -> None:
    time.sleep(2)
    raise TimeoutError


def test_a_hub_that_accepts_connections_is_reachable_unless_switched_off(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://{server}")
    assert hub.is_reachable()
    hub.check_available("some", "owner/some")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.is_reachable()


def test_a_refused_connection_and_an_unknown_name_are_known_at_once(closed, monkeypatch):
    for endpoint in (f"http://{closed}", "https://hub.invalid", "https://hub.invalid:8443"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        started = time.perf_counter()
        assert not hub.is_reachable()
        assert time.perf_counter() - started < hub.CONNECT_TIMEOUT_S


def test_a_proxy_answers_for_the_hub_unless_the_hub_is_exempt(server, closed, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, f"http://{server}")
            assert hub.is_reachable()
            patch.setenv("NO_PROXY", "hub.invalid")
            assert not hub.is_reachable()
    monkeypatch.setenv("HTTPS_PROXY", closed)  # without a scheme, as some set it
    assert not hub.is_reachable()


@pytest.mark.parametrize("silent", ["create_connection", "getaddrinfo"])
def test_silence_is_waited_for_no_longer_than_patience(silent, monkeypatch):
    monkeypatch.setattr(hub, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(socket, silent, no_answer)
    started = time.perf_counter()
    assert not hub.is_reachable()
    assert time.perf_counter() - started < 1


def test_one_address_that_leads_nowhere_does_not_hide_another(server, monkeypatch):
    connect, lookup = socket.create_connection, socket.getaddrinfo
    nowhere = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::2", 443, 0, 0))
    # Connecting looks numbers up as well, but without keywords.
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [nowhere] * bool(k) + lookup(*a, **k))
    monkeypatch.setattr(
        socket, "create_connection", lambda to, **k: no_answer() if to[0] == "::2" else connect(to, **k)
    )
    monkeypatch.setenv("HF_ENDPOINT", f"http://{server}")
    started = time.perf_counter()
    assert hub.is_reachable()
    assert time.perf_counter() - started < 1


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Puts a folder into the hub's cache under a repository's name, with a hub that cannot be reached."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "is_reachable", lambda: False)

    def put(folder, repository):
        home = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        shutil.copytree(folder, home / "snapshots" / ("0" * 40))
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text("0" * 40)
        return home / "snapshots" / ("0" * 40)

    return put


def test_a_model_that_cannot_be_had_is_refused(closed, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://{closed}")
    with pytest.raises(UserError, match=r"'phi-1\.5' could not be loaded: tried microsoft/phi-1_5 on http.*FOLDER"):
        models.check_available("phi-1.5")
    assert models.check_available("tiny").kind == "tiny"


def test_what_is_in_the_cache_is_looked_at_before_it_is_loaded(cached, tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path / "whole")
    tiny.tokenizer.save_pretrained(tmp_path / "whole")
    cached(tmp_path / "whole", "owner/whole")
    assert models.check_available("owner/whole").location == "owner/whole"
    assert models.context_length("owner/whole") == tiny.model.config.max_position_embeddings
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    cached(tmp_path / "whole", "owner/part")
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        models.check_available("owner/part")


def test_a_revision_is_pinned_by_the_name_and_what_was_loaded_is_recorded(cached, tiny, tmp_path, store):
    from edgequant import tracking

    tiny.model.save_pretrained(tmp_path / "whole")
    tiny.tokenizer.save_pretrained(tmp_path / "whole")
    now = cached(tmp_path / "whole", "owner/whole")
    pinned = now.parent / ("1" * 40)
    shutil.copytree(now, pinned)
    weights = load_file(pinned / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, pinned / "model.safetensors", metadata={"format": "pt"})
    (now.parent.parent / "refs" / "v1").write_text("1" * 40)
    for revision in ("v1", "1" * 40):
        source = models.check_available(f"owner/whole@{revision}")
        assert (source.name, origin(source).base_model) == ("whole", "owner/whole")
        with tracking.workflow_run("evaluate", {"of": "a test"}) as run:
            loaded = models.load(source)
        assert loaded.model.model.norm.weight.equal(tiny.model.model.norm.weight + 1)
        assert store.get_run(run.id).data.params["revision.owner/whole"] == "1" * 40
        assert models.context_length(f"owner/whole@{revision}") == tiny.model.config.max_position_embeddings
        assert len(models.load_tokenizer(f"owner/whole@{revision}")) == len(tiny.tokenizer)
    with tracking.workflow_run("evaluate", {"of": "a test"}) as run:
        assert models.load("owner/whole").model.model.norm.weight.equal(tiny.model.model.norm.weight)
    assert store.get_run(run.id).data.params["revision.owner/whole"] == "0" * 40
    with pytest.raises(UserError, match="`hf download owner/whole --revision v2`"):
        models.load("owner/whole@v2")


def test_short_names_take_a_revision_and_odd_ones_are_refused():
    assert models.resolve("qwen2.5-0.5b@abc").location == "Qwen/Qwen2.5-0.5B@abc"
    assert models.resolve("owner/name@refs/pr/1").location == "owner/name@refs/pr/1"
    for odd in ("owner/name@", "owner/name@a b", "owner/name@../x", "nothing@v1", "tiny@v1"):
        with pytest.raises(UserError, match="is unknown"):
            models.resolve(odd)


def test_evaluate_says_so_within_seconds_and_starts_no_run(edgequant, closed, tmp_path):
    started = time.perf_counter()
    done = edgequant(
        "evaluate", "--model", "qwen2.5-0.5b", HF_ENDPOINT=f"http://{closed}", HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path)
    )
    assert done.returncode != 0 and "hf download Qwen/Qwen2.5-0.5B" in done.stderr
    assert time.perf_counter() - started < 10
    assert not (tmp_path / "mlflow.db").exists()
