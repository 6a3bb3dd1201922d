"""One commit to the model hub, and one line for whatever the hub says instead."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgequant.errors import UserError, first_line
from edgequant.evaluation.evidence_file import FILE as EVIDENCE
from edgequant.folders import MANIFEST
from edgequant.models import hub
from edgequant.models.manifest import EXPORTED, HARMLESS, for_others
from edgequant.reporting.model_card import FILE

# What a promotion adds for `mlflow models serve`, by its first part; MLmodel tells that it is there.
SERVING = {
    "MLmodel", "code", "conda.yaml", "python_env.yaml", "requirements.txt", "served_model.py", "registered_model_meta",
}  # fmt: skip
WHY = {
    401: "the token is not valid; run `hf auth login` again, or set HF_TOKEN",
    402: "the owner's plan does not allow it; see the hub's billing page",
    403: "the token may not write there; use one with the right to write, or another --repo",
    404: "no such owner or repository, or the token may not see it; check --repo",
    409: "somebody else is changing the repository; run the command again",
    413: "a file is too large for it; see the hub's storage limits",
    429: "too many requests; wait some minutes",
}


def check_hub() -> None:
    """Refuse a push that cannot begin.

    Raises:
        UserError: the hub is not within reach, or nobody is logged in.
    """
    from huggingface_hub import get_token

    if not hub.is_reachable():
        raise UserError(
            f"{hub.endpoint()} cannot be reached (offline, or HF_HUB_OFFLINE is set); connect and run it again"
        )
    if get_token() is None:
        raise UserError(f"no token for {hub.endpoint()}; run `hf auth login`, or set HF_TOKEN to one that may write")


def upload(
    folder: Path, repo: str, card: str, *, private: bool, revision: str | None
) -> tuple[str, dict[str, Path | bytes]]:
    """Make the repository where there is none, and put a folder's files there in one commit.

    Args:
        card: what README.md says.

    Returns:
        The page of what was pushed, and the files by their paths there.

    Raises:
        UserError: the hub refused; then nothing was pushed.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.endpoint())
    files = {**files_to_push(folder), FILE: card.encode()}
    try:
        _make_repository(api, repo, private, revision)
        _commit(api, repo, files, folder, revision)
    except UserError:
        raise
    except Exception as error:  # of whatever library the hub's client talks through
        raise UserError(f"{repo} at {hub.endpoint()}: {_why(error)}; nothing was pushed") from error
    branch = f"/tree/{revision}" if revision is not None else ""
    return f"{hub.endpoint()}/{repo}{branch}", files


def files_to_push(folder: Path) -> dict[str, Path | bytes]:
    """A checkpoint's files by their paths.

    Without hidden ones, what only serves it through MLflow, and the evidence of a registered version, which names
    folders and machines of its makers, as the manifest does its baseline's.
    """
    served = SERVING if (folder / "MLmodel").is_file() else set()
    manifest = folder / MANIFEST
    found: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if (
            path.is_file()
            and parts[0] not in served
            and not any(part.startswith((".", "__pycache__")) for part in parts)
        ):
            found["/".join(parts)] = path
    found.pop(EVIDENCE, None)
    if MANIFEST in found:
        found[MANIFEST] = json.dumps(for_others(manifest, but=EVIDENCE), indent=2).encode()
    return found


def _make_repository(api: Any, repo: str, private: bool, revision: str | None) -> None:
    api.create_repo(repo, private=private or None, exist_ok=True)
    if private and not api.repo_info(repo).private:
        raise UserError(f"private true, but {repo} is there and public; name another --repo, or make it private first")
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)


def _commit(api: Any, repo: str, files: Mapping[str, Path | bytes], folder: Path, revision: str | None) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    added = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in files.items()
    ]
    there = api.list_repo_files(repo, revision=revision)
    deleted = [CommitOperationDelete(path) for path in there if path not in files and is_of_a_model(path)]
    api.create_commit(
        repo, [*added, *deleted], commit_message=f"Checkpoint {folder.name} by edgequant", revision=revision
    )


def is_of_a_model(path: str) -> bool:
    """Whether a file could change what is loaded, or is an exported form; pictures and texts beside it are not."""
    return bool(EXPORTED.fullmatch(path)) or not HARMLESS.fullmatch(path)


def _why(error: BaseException) -> str:
    """A status of the hub's, also where an error of an upload wraps it; else the first line."""
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return f"{status}, {WHY.get(status, 'the hub has failed; run the command again later')}"
        if type(cause).__module__.partition(".")[0] in ("httpx", "httpcore", "requests") or isinstance(
            cause, ConnectionError
        ):
            return f"the connection failed ({type(cause).__name__}); run the command again"
        cause = cause.__cause__ or cause.__context__
    return first_line(error) or type(error).__name__
