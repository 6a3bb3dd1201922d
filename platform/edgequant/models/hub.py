"""The model hub: whether a model can be had from it, and one error for all that goes wrong there."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from edgequant.errors import UserError, first_line
from edgequant.models.configs import CONFIG, read_object

CONNECT_TIMEOUT_S = 4.0
PORTS = {"https": 443, "http": 80, "socks5": 1080, "socks5h": 1080}
CONFIGS = (CONFIG, "adapter_config.json")
LOADED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.md")  # what loading may read of a repository


def split(repository: str) -> tuple[str, str | None]:
    """OWNER/NAME, and the branch, tag or commit that is named behind `@`; None: whatever the main branch is."""
    name, _, revision = repository.partition("@")
    return name, revision or None


def located(repository: str) -> str:
    """A repository as transformers takes it: its name, or the local cache's folder of the revision that is pinned."""
    from huggingface_hub import snapshot_download

    name, revision = split(repository)
    return name if revision is None else snapshot_download(name, revision=revision, allow_patterns=[*LOADED])


def commit_of(repository: str, config: Any) -> str | None:
    """The commit that a model was loaded from; None where the client does not say.

    Args:
        config: of the loaded model.
    """
    from huggingface_hub import try_to_load_from_cache

    repo, revision = split(repository)
    if revision is None and getattr(config, "_commit_hash", None):
        return str(config._commit_hash)
    files = (try_to_load_from_cache(repo, file, revision=revision) for file in CONFIGS)
    return next((Path(found).parent.name for found in files if isinstance(found, str)), None)  # snapshots/COMMIT


def check_available(name: str, repository: str) -> None:
    """Refuse a model that is neither in the local cache nor within reach, in seconds and before anything heavy.

    Raises:
        UserError: says what was tried and how to get the model.
    """
    from huggingface_hub import try_to_load_from_cache

    repo, revision = split(repository)
    configs = (try_to_load_from_cache(repo, file, revision=revision) for file in CONFIGS)
    if not any(isinstance(config, str) for config in configs) and not is_reachable():
        raise _unavailable(name, repository, "no connection, and nothing in the cache")


def fetched(name: str, repository: str, attempt: Callable[[], Any]) -> Any:
    """What `attempt` gets from the hub or its cache; offline, the client does not ask the hub again and again.

    Raises:
        UserError: missing, gated and unreachable alike; says what was tried and how to get the model.
    """
    try:
        with contextlib.nullcontext() if is_reachable() else _offline():
            return attempt()
    except OSError as error:
        raise _unavailable(name, repository, f"{type(error).__name__}: {first_line(error)}") from error


def stated_config(name: str, repository: str) -> dict[str, Any]:
    """A repository's config.json, empty where it has none, as one of an adapter.

    Raises:
        UserError: it cannot be fetched, or is no JSON object.
    """
    from transformers.utils import cached_file

    repo, revision = split(repository)
    fetched(
        name,
        repository,
        lambda: cached_file(repo, CONFIG, revision=revision, _raise_exceptions_for_missing_entries=False),
    )
    return cached_config(repository)


def cached_config(repository: str) -> dict[str, Any]:
    """A repository's config.json where the local cache has it, else empty.

    Raises:
        UserError: it is no JSON object.
    """
    from huggingface_hub import try_to_load_from_cache

    repo, revision = split(repository)
    found = try_to_load_from_cache(repo, CONFIG, revision=revision)
    return read_object(Path(found)) if isinstance(found, str) else {}


def cached_folder(repository: str) -> Path | None:
    """The local cache's folder of a repository's files, of its main branch; None where it has none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, CONFIG)
    except HFValidationError:  # a folder that was moved since
        return None
    return Path(found).parent if isinstance(found, str) else None


def cached_card(repository: str) -> Path | None:
    """A repository's README.md where the local cache has it."""
    from huggingface_hub import try_to_load_from_cache

    repo, revision = split(repository)
    found = try_to_load_from_cache(repo, "README.md", revision=revision)
    return Path(found) if isinstance(found, str) else None


def _unavailable(name: str, repository: str, why: str) -> UserError:
    repo, revision = split(repository)
    command = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
    return UserError(
        f"model {name!r} could not be loaded: tried {repository} on {endpoint()} and in the local hub cache ({why}). "
        f"With network: `{command}` (gated models: accept the licence on the model's page, then `hf "
        "auth login`). Without: copy the model's folder from a machine that has it and pass --model FOLDER; "
        "smollm2-135m and tiny need no network."
    )


def endpoint() -> str:
    """The hub's address."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def is_reachable() -> bool:
    """Whether the hub, or the proxy before it, accepts a connection within seconds; never where it is switched off."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _accepts(_first_stop(urlsplit(endpoint())))


def _first_stop(hub: SplitResult) -> SplitResult:
    """The proxy that the environment names for the hub, else the hub."""
    proxies = getproxies()
    proxy = proxies.get(hub.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(hub.hostname or ""):
        return hub
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _accepts(url: SplitResult) -> bool:
    """Whether one of a host's addresses accepts a connection. All are tried at once: one family may lead nowhere."""
    done, answers = threading.Event(), []

    def try_connect(address: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError), socket.create_connection(address[:2], timeout=CONNECT_TIMEOUT_S):
            answers.append(address)
            done.set()

    def try_everywhere() -> None:
        found = set()
        with contextlib.suppress(OSError):
            port = url.port or PORTS.get(url.scheme, 443)
            found = {entry[4] for entry in socket.getaddrinfo(url.hostname, port, type=socket.SOCK_STREAM)}
        attempts = [threading.Thread(target=try_connect, args=(address,), daemon=True) for address in found]
        for thread in attempts:
            thread.start()
        for thread in attempts:
            thread.join()
        done.set()

    threading.Thread(target=try_everywhere, daemon=True).start()
    done.wait(CONNECT_TIMEOUT_S)
    return bool(answers)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Without a network the hub's client retries for a minute; offline, it reads its cache and gives up at once."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
