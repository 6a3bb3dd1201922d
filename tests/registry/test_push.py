"""`edgequant push`: one commit to a hub, or none; the hub is one on the loopback interface."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import TOKEN, FakeHub, Repository
from huggingface_hub import ModelCard, constants

from edgequant import models
from edgequant.errors import UserError
from edgequant.models.manifest import Baseline, record_baseline, stated_baseline
from edgequant.models.origin import Origin
from edgequant.reporting.model_card import Card, write_card
from edgequant_registry.hub.push import push

REPO = "me/small"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    server = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which needs a service of its own
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with an exported file and its card."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, copy)
    (copy / "tiny-q4_1.gguf").write_bytes(b"GGUF of four bits")
    (copy / "README.md").unlink(missing_ok=True)
    made = Card(title="edgequant-tiny", origin=Origin("Qwen/Qwen2.5-0.5B", "apache-2.0"), scheme="w4a8-g32+emb4")
    write_card(copy, made)
    return copy


def test_where_the_baseline_lies_stays_at_home(hub: FakeHub, folder: Path) -> None:
    record_baseline(folder, Baseline("/home/me/models/mine", "0" * 64))
    push(repo=REPO, model=str(folder))
    assert b"baseline" not in hub.files(REPO)["edgequant.json"]
    assert stated_baseline(folder) == Baseline("/home/me/models/mine", "0" * 64)


def test_a_checkpoint_arrives_whole_in_one_commit_with_its_card_and_loads_again(
    hub: FakeHub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ".secret").write_text("mine")
    push(repo=REPO, model=str(folder))
    commits = hub.repositories[REPO].branches["main"]
    assert len(commits) == 2 and not hub.repositories[REPO].private
    names = {path.name for path in folder.iterdir() if path.is_file()} - {".secret"}
    assert set(hub.files(REPO)) == names
    card = hub.files(REPO)["README.md"].decode()
    assert ModelCard(card).data.base_model == "Qwen/Qwen2.5-0.5B" and f'from_pretrained("{REPO}")' in card
    assert f"{hub.address}/{REPO}" in capsys.readouterr().out
    assert loaded(hub, tmp_path).config.edgequant_model == "tiny"


def loaded(hub: FakeHub, folder: Path) -> Any:
    """The model as somebody fetches it, verified file by file."""
    fetched = folder / "fetched"
    fetched.mkdir()
    for name, content in hub.files(REPO).items():
        (fetched / name).write_bytes(content)
    return models.load(str(fetched), device="cpu").model


def test_a_registered_version_is_pushed_without_what_serves_it(hub: FakeHub, register: Any, tmp_path: Path) -> None:
    from edgequant_registry.packaging import make_servable

    register()
    make_servable("edgequant-tiny", "1")
    push(repo=REPO, model="models:/edgequant-tiny/1", private=True)
    assert hub.repositories[REPO].private
    assert {"model.safetensors", "config.json", "edgequant.json", "README.md"} <= set(hub.files(REPO))
    assert not {"MLmodel", "served_model.py", "requirements.txt"} & set(hub.files(REPO))
    assert not [name for name in hub.files(REPO) if name.startswith("code/")]
    assert "**domain**" in hub.files(REPO)["README.md"].decode()  # with its results
    assert "evidence.json" not in hub.files(REPO)  # which names folders and machines of its makers
    assert loaded(hub, tmp_path).config.edgequant_model == "tiny"


def test_a_second_push_leaves_no_file_of_the_model_before_and_no_other_goes(hub: FakeHub, folder: Path) -> None:
    before = {"old-q8_0.gguf": b"1", "chat_template.jinja": b"2", "picture.png": b"3", ".gitattributes": b"4"}
    hub.repositories[REPO] = Repository(branches={"main": [before]})
    push(repo=REPO, model=str(folder))
    assert len(hub.repositories[REPO].branches["main"]) == 2
    assert set(before) & set(hub.files(REPO)) == {"picture.png", ".gitattributes"}


def test_a_branch_takes_it_where_one_is_named(hub: FakeHub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push(repo=REPO, model=str(folder), revision="four_bits")
    assert "model.safetensors" in hub.files(REPO, "four_bits") and hub.files(REPO) == {}
    assert f"{REPO}/tree/four_bits" in capsys.readouterr().out


def test_what_is_to_be_private_is_not_put_into_a_public_repository(hub: FakeHub, folder: Path) -> None:
    hub.repositories[REPO] = Repository()
    with pytest.raises(UserError, match="private true, but me/small is there and public"):
        push(repo=REPO, model=str(folder), private=True)
    assert len(hub.repositories[REPO].branches["main"]) == 1


def test_a_folder_without_a_card_gets_one_of_what_is_known(hub: FakeHub, folder: Path, tiny_folder: Path) -> None:
    (folder / "README.md").unlink()
    push(repo=REPO, model=str(folder))
    card = hub.files(REPO)["README.md"].decode()
    assert "w4a8-g32+emb4" in ModelCard(card).data.tags and "Nothing was measured" in card
    push(repo="me/plain", model=str(tiny_folder))
    assert "quantized" not in ModelCard(hub.files("me/plain")["README.md"].decode()).data.tags


@pytest.mark.parametrize(("repo", "noted"), [("me/small", True), ("me/Llama-small", False)])
def test_a_name_that_llamas_licence_forbids_is_told(
    hub: FakeHub, folder: Path, repo: str, noted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_card(folder, Card(title="x", origin=Origin("meta-llama/Llama-3.2-1B"), scheme="w4a8-g32+emb4"))
    push(repo=repo, model=str(folder))
    assert ("a name that begins with Llama" in capsys.readouterr().out) is noted
    assert b"Llama 3.2 Community License" in hub.files(repo)["NOTICE"]


@pytest.mark.parametrize(
    ("part", "status", "said"),
    [
        ("/api/repos/create", 401, "401, the token is not valid; run `hf auth login` again"),
        ("/api/repos/create", 403, "403, the token may not write there"),
        ("/preupload/", 404, "404, no such owner or repository"),
        ("/info/lfs/", 413, "413, a file is too large"),
        ("/objects/", 403, "403, the token may not write there"),
        ("/commit/", 409, "409, somebody else is changing the repository"),
        ("/commit/", 500, "500, the hub has failed; run the command again later"),
    ],
)
def test_whatever_the_hub_refuses_is_told_in_one_line_and_nothing_is_pushed(
    hub: FakeHub, folder: Path, part: str, status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # before the hub's client tries again
    hub.fail[part] = status
    with pytest.raises(UserError) as refused:
        push(repo=REPO, model=str(folder))
    assert said in str(refused.value) and "nothing was pushed" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [len(one.branches["main"]) for one in hub.repositories.values()] in ([], [1])


def test_without_token_or_network_nothing_is_asked(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pytest.raises(UserError, match=r"no token for .*hf auth login"):
        push(repo=REPO, model=str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be reached"):
        push(repo=REPO, model=str(folder))
    assert hub.asked == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "repo must be OWNER/NAME .* got nothing"),
        ({"repo": "small"}, "repo must be OWNER/NAME .* got 'small'"),
        ({"repo": "a/b/c"}, "repo must be OWNER/NAME"),
        ({"repo": "../etc"}, "repo must be OWNER/NAME"),
        ({"repo": "me/a--b"}, "repo must be OWNER/NAME"),
        ({"repo": REPO, "revision": "a b"}, "revision must be the name of a branch, got 'a b'"),
        ({"repo": REPO, "model": "tiny"}, "model must be a checkpoint's folder or a registered version, got 'tiny'"),
        ({"repo": REPO, "model": "models:/nothing/1"}, "could not be fetched"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(
    hub: FakeHub, store: Any, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        push(**given)
    assert hub.asked == []


def test_a_damaged_checkpoint_is_not_pushed(hub: FakeHub, folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        push(repo=REPO, model=str(folder))
    assert hub.asked == []
