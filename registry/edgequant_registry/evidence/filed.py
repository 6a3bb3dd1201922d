"""Whether a version's evidence and files are what was filed when it was registered."""

from __future__ import annotations

from pathlib import Path

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.evaluation.evidence_file import FILE, Evidence, read
from edgequant.files import sha256_of_bytes
from edgequant.models.manifest import files_that_count, verify


def evidence_of(name: str, version: str, run_id: str | None) -> Evidence | None:
    """A version's evidence, if its file, its run's copy and the SHA-256 that its run wrote down agree.

    Returns:
        None of a version that was registered before there was any.

    Raises:
        UserError: they do not, the run was deleted, or the file is none.
    """
    label, uri = f"{name} version {version}", f"models:/{name}/{version}/{FILE}"
    filed = tracking.filed_evidence(name, version, run_id) if run_id else None
    if filed is None:
        _check_has_none(label, uri)
        return None
    try:
        found = tracking.download(uri).read_bytes()
    except UserError as error:
        raise UserError(
            f"{label}: {FILE}, which its run filed with it, is no longer among its files; copy it back from run "
            f"{run_id}'s evidence/, or register the checkpoint again"
        ) from error
    for whose, content in (("its", found), (f"run {run_id}'s copy of its", filed.copy)):
        if (digest := sha256_of_bytes(content)) != filed.digest:
            raise UserError(
                f"{label}: {whose} {FILE} is not what was filed with it (SHA-256 {digest[:12]}..., filed "
                f"{filed.digest[:12]}...); register the checkpoint again"
            )
    return read(found.decode(errors="replace"), f"{label}: {FILE}")


def _check_has_none(label: str, uri: str) -> None:
    """Evidence that no run knows is not a version's: it was put there later, or belongs to another one."""
    try:
        tracking.download(uri)
    except UserError:
        return
    raise UserError(
        f"{label} has a file {FILE} that the run which registered it does not know: the version was not registered by "
        "edgequant; register the checkpoint with `edgequant ptq`, `qat`, `finetune` or `tune`"
    )


def verified_checkpoint(uri: str, label: str, evidence: Evidence | None) -> Path:
    """Fetch a version's files and check the SHA-256 of each against its manifest, and that against its evidence.

    Returns:
        Where they lie.

    Raises:
        UserError: a file is missing, damaged, or another than the one that was measured; names it.
    """
    folder = tracking.download(uri)
    listed = files_that_count(verify(folder, label))
    measured = listed if evidence is None else {**evidence.files, FILE: listed.get(FILE)}
    for name in sorted(measured.keys() | listed.keys()):
        if measured.get(name) != listed.get(name):
            raise UserError(
                f"{label}: {name} is not the file that was measured, though the checkpoint's manifest has been made to "
                "agree with it; register the checkpoint again"
            )
        if not (folder / name).is_file():
            raise UserError(f"{label}: {name} not found; register the checkpoint again")
    return folder
