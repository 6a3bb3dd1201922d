"""`edgequant.json`: SHA-256 of every file of a folder that edgequant wrote, checked whenever the folder is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgequant.errors import UserError
from edgequant.files import sha256_of, write_atomically
from edgequant.folders import MANIFEST
from edgequant.models.configs import OUR_METHOD, folder_config, needs_manifest, read_object, stated_quantization

FORMAT = 1
BASELINE = "baseline"
# What hubs, MLflow, desktops and people put beside a model, and nothing that loads one reads.
HARMLESS = re.compile(
    r"\..*|(readme|licen[cs]e|copying|notice|authors|citation|changelog|use_policy)\b.*|"
    r".*\.(md|rst|png|jpe?g|gif|svg|webp|pdf|html|csv|log|ya?ml|py|gguf|onnx|ini|db|sha256|sig|asc|bib|cff)|"
    r".*(~|\.(bak|orig|old|swp))|modelfile|dockerfile|makefile|(md5|sha\d+)sums(\.txt)?|"
    r"mlmodel|requirements\.txt|registered_model_meta|(serving_)?input_example\.json|thumbs\.db",
    re.IGNORECASE,
)
EXPORTED = re.compile(r".*\.(gguf|onnx)|onnx/.*", re.IGNORECASE)  # must be what was written, where it still lies
TEMPLATES = "additional_chat_templates"  # the one folder in a model's that transformers reads
LISTED_NAME = re.compile(rf"(({TEMPLATES}|onnx)/)?(?!\.{{1,2}}$)[^/\\\x00]+")
_known: dict[tuple[str, int, int, int, int], str] = {}


def write_manifest(folder: Path, scheme: dict[str, Any] | None) -> None:
    """Write down the SHA-256 of every file, and the scheme of a quantised checkpoint: what is listed is ours."""
    files = {name: sha256_of(folder / name) for name in _names(folder)}
    write_atomically(folder / MANIFEST, json.dumps({"format": FORMAT, "scheme": scheme, "sha256": files}, indent=2))


def list_file(folder: Path, name: str, sha256: str) -> None:
    """Add one more file of a folder to its manifest, such as the exported form of the checkpoint."""
    manifest = _read(folder / MANIFEST)
    manifest["sha256"][name] = sha256
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2))


class Baseline(NamedTuple):
    """The floating-point model that a checkpoint was made from: as a model argument names it, and its weights'
    SHA-256 in float32 (`digest.stored_digest`)."""

    model: str
    sha256: str


def record_baseline(folder: Path, baseline: Baseline) -> None:
    """Write down in a checkpoint's manifest which floating-point model it was made from."""
    manifest = _read(folder / MANIFEST)
    write_atomically(folder / MANIFEST, json.dumps({**manifest, BASELINE: baseline._asdict()}, indent=2))


def stated_baseline(folder: Path) -> Baseline | None:
    """The floating-point model that a checkpoint says it was made from; None where it does not say."""
    stated = _read(folder / MANIFEST).get(BASELINE)
    if not isinstance(stated, dict) or {*stated} != {*Baseline._fields}:
        return None
    return Baseline(**stated) if all(isinstance(each, str) for each in stated.values()) else None


def for_others(manifest: Path, *, but: str) -> dict[str, Any]:
    """What a manifest would say of a folder that lacks one file and is elsewhere: not where the baseline lies here."""
    told = _read(manifest)
    told["sha256"].pop(but, None)
    told.pop(BASELINE, None)
    return told


def files_that_count(manifest: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the listed files that decide what is loaded, or are exported forms of it: cards and the like may be
    edited."""
    listed: dict[str, str] = manifest["sha256"]
    return {name: digest for name, digest in listed.items() if EXPORTED.fullmatch(name) or not HARMLESS.fullmatch(name)}


def _names(folder: Path) -> list[str]:
    """The files beside the manifest, and those below that loading may read, by their paths within the folder."""
    files = [file for file in (*folder.iterdir(), *(folder / TEMPLATES).glob("*")) if not file.is_dir()]
    return sorted(file.relative_to(folder).as_posix() for file in files if file.name != MANIFEST)


def verify(folder: str | Path, called: str = "") -> dict[str, Any]:
    """Check every file that loading may read against the manifest; returns the manifest.

    Args:
        called: what people know it as, where the folder is a copy of this process' own.

    Raises:
        UserError: no manifest, a missing or damaged file, or one that is not listed and could change what is loaded.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{called or folder} is not an edgequant checkpoint: {MANIFEST} not found; make one with `edgequant qat` "
            "or `ptq`"
        )
    called = called or f"checkpoint {folder}"
    manifest = _read(folder / MANIFEST)
    for name, expected in manifest["sha256"].items():
        there = (folder / name).is_file()
        if (HARMLESS.fullmatch(name) or EXPORTED.fullmatch(name)) and not (EXPORTED.fullmatch(name) and there):
            continue  # a card that somebody edited, or an exported file that was moved elsewhere
        if not (folder / name).is_file():
            raise UserError(f"{called}: {name} not found; copy the whole folder again")
        if (found := _sha256_of_unchanged(folder / name)) != expected:
            raise UserError(
                f"{called}: {name} is damaged (SHA-256 {_told(found, expected)}, {MANIFEST} lists "
                f"{_told(expected, found)}); copy both again"
            )
    if unlisted := _unlisted(folder, manifest["sha256"]):
        raise UserError(
            f"{called}: {', '.join(unlisted[:3])} is not listed in {MANIFEST} and could change what is "
            "loaded; remove it, or copy the folder again"
        )
    _check_scheme(folder, manifest["scheme"], called)
    return manifest


def _told(digest: str, beside: str) -> str:
    """Its begin, or the whole where both begin alike: then the list is what was changed."""
    return digest if digest[:12] == beside[:12] else f"{digest[:12]}..."


def _check_scheme(folder: Path, scheme: Any, called: str) -> None:
    """The weights are read by what config.json says, and described by what the manifest says."""
    config = folder_config(folder)
    if stated_quantization(config) == OUR_METHOD and config["quantization_config"].get("scheme") != scheme:
        raise UserError(f"{called}: the scheme in {MANIFEST} is not that in config.json; copy {MANIFEST} again")


def verify_if_ours(folder: Path) -> dict[str, Any] | None:
    """`verify` for a folder that has a manifest, or whose config.json says that it must have one; else None.

    Raises:
        UserError: as `verify`.
    """
    if (folder / MANIFEST).is_file():
        return verify(folder)
    if needs_manifest(folder):
        raise UserError(
            f"checkpoint {folder}: {MANIFEST} not found, without which its files cannot be checked; copy the whole "
            "folder again"
        )
    return None


def _read(file: Path) -> dict[str, Any]:
    manifest = read_object(file)
    files = manifest.get("sha256")
    if manifest.get("format") != FORMAT or not isinstance(files, dict) or "scheme" not in manifest:
        raise UserError(
            f"{file} must have format {FORMAT}, a scheme and sha256 of each file, got {str(manifest)[:60]!r}; copy it "
            "again, or install the edgequant that wrote it"
        )
    for name, digest in files.items():
        if not LISTED_NAME.fullmatch(name) or not isinstance(digest, str):
            raise UserError(f"{file} must list files of its own folder, got {name!r}; copy the folder again")
    return manifest


def _unlisted(folder: Path, listed: dict[str, str]) -> list[str]:
    return [name for name in _names(folder) if name not in listed and not HARMLESS.fullmatch(name)]


def _sha256_of_unchanged(file: Path) -> str:
    """Computed once for as long as the file stays untouched: a workflow loads a folder more than once."""
    found = file.stat()
    key = (str(file.resolve()), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if key not in _known:
        _known[key] = sha256_of(file)
    return _known[key]
