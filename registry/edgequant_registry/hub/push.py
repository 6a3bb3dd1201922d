"""`edgequant push`: a checkpoint with its model card and exported files to the model hub. It makes no run.

edgequant push --repo ME/MODEL                                       # the newest champion
edgequant push --repo ME/MODEL --model models:/edgequant-smollm2-135m/3 --private true
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from edgequant.errors import UserError
from edgequant.workflows.steps.register import default_model

if TYPE_CHECKING:
    from edgequant.models.sources import ModelSource

REPO = re.compile(r"(?!.*(--|\.\.))[\w][\w.-]{0,95}/[\w][\w.-]{0,94}[\w]|[\w]+/[\w]")
REVISION = re.compile(r"(?!.*(//|\.\.|@\{))[\w][\w./-]*")


def push(
    *, repo: str | None = None, model: str | None = None, private: bool = False, revision: str | None = None
) -> None:
    """Put a checkpoint on the model hub, in one commit: weights, tokenizer, model card, exported files.

    Args:
        repo: OWNER/NAME of the repository, which is made where there is none. Model files that it holds and the
            checkpoint does not are deleted from it, in the same commit.
        model: models:/ or runs:/ URI, or a checkpoint's folder. By default as `export`.
        private: make the repository private; one that is public already is refused.
        revision: branch, which is made where there is none; null: main.
    """
    check_settings(repo, revision)
    from edgequant import models
    from edgequant_registry.hub.upload import check_hub, upload

    check_hub()
    source = models.check_available(model or default_model())
    folder = folder_of(source)
    card = card_of(source, folder, str(repo))
    if is_misnamed(card, str(repo)):
        print("note    Llama's licence wants a name that begins with Llama; move the repository, or push to another")
    page, pushed = upload(folder, str(repo), card, private=private, revision=revision)
    size = sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in pushed.values())
    print(f"pushed  {source.name}: {len(pushed)} files, {size / 1e6:.1f} MB\npage    {page}")


def check_settings(repo: str | None, revision: str | None) -> None:
    """Refuse names that no hub takes, before anything is fetched.

    Raises:
        UserError: names the value and what was expected.
    """
    if repo is None or not REPO.fullmatch(repo):
        given = "nothing" if repo is None else repr(repo)
        raise UserError(f"repo must be OWNER/NAME of letters, digits, . _ and -, got {given}; e.g. --repo me/small")
    if revision is not None and not REVISION.fullmatch(revision):
        raise UserError(f"revision must be the name of a branch, got {revision!r}; leave it out for main")


def folder_of(source: ModelSource) -> Path:
    """The folder that is pushed.

    Raises:
        UserError: the model is no checkpoint's folder, and so nobody's to push.
    """
    if source.kind != "folder":
        raise UserError(f"model must be a checkpoint's folder or a registered version, got {source.name!r}")
    return Path(source.location)


def card_of(source: ModelSource, folder: Path, repo: str) -> str:
    """The card that lies in the folder, else one that says what is known; its commands name the repository."""
    from edgequant.models.manifest import verify_if_ours
    from edgequant.models.origin import origin
    from edgequant.models.sources import SHORT_NAMES
    from edgequant.reporting.model_card import FILE, Card, exported_files, located, model_card

    if (folder / FILE).is_file():
        return located((folder / FILE).read_text(encoding="utf-8"), repo)
    manifest = verify_if_ours(folder) or {}
    scheme = (manifest.get("scheme") or {}).get("name", "none")
    made_from = origin(source.name if source.name in SHORT_NAMES else str(folder))
    title, files = repo.split("/")[1], exported_files(folder)
    return model_card(Card(title=title, origin=made_from, scheme=scheme, files=files, location=repo))


def is_misnamed(card: str, repo: str) -> bool:
    """Whether the card's licence asks for a name that the repository has not: Llama 3's and later ones do."""
    from huggingface_hub import ModelCard

    license = str(ModelCard(card, ignore_metadata_errors=True).data.to_dict().get("license"))
    return re.match(r"llama[3-9]", license) is not None and not repo.partition("/")[2].lower().startswith("llama")
