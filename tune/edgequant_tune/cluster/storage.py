"""Where trials leave their checkpoints: a folder that all nodes have, or an object store such as s3://bucket/folder."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgequant.errors import UserError

SCHEMES = ("s3", "gs", "abfs", "hdfs", "file")  # of addresses that pyarrow's file systems open


def is_object_store(place: str | None) -> bool:
    """Whether a place is an address, as s3://bucket/folder, rather than a folder."""
    return place is not None and "://" in place


def check_address(storage_path: str) -> None:
    """Refuse an address of no store that pyarrow knows; whether it can be reached is asked on the nodes.

    Raises:
        UserError: names the address.
    """
    address = urlsplit(storage_path)
    if address.scheme not in SCHEMES:
        raise UserError(
            f"storage_path must be a folder or an address such as s3://bucket/folder, got {storage_path!r}; its "
            f"store must be one of {', '.join(SCHEMES)}"
        )
    if not f"{address.netloc}{address.path}".strip("/"):
        raise UserError(f"storage_path must name a bucket or a folder, as s3://bucket/folder, got {storage_path!r}")


def write_text(place: str, name: str, text: str) -> None:
    """Write a small file there."""
    store, path = _opened(place)
    store.create_dir(path, recursive=True)
    with store.open_output_stream(f"{path}/{name}") as stream:
        stream.write(text.encode())


def read_text(place: str, name: str) -> str:
    """Read a small file from there."""
    store, path = _opened(place)
    with store.open_input_stream(f"{path}/{name}") as stream:
        return str(stream.read().decode())


def put_folder(folder: Path, place: str) -> None:
    """Copy a folder's files there, with its subfolders."""
    from pyarrow.fs import LocalFileSystem, copy_files

    store, path = _opened(place)
    store.create_dir(path, recursive=True)
    copy_files(str(folder), path, source_filesystem=LocalFileSystem(), destination_filesystem=store)


def fetch_folder(place: str, folder: Path) -> Path:
    """Copy what lies there into a folder, which is whole or absent."""
    from pyarrow.fs import LocalFileSystem, copy_files

    from edgequant.folders import atomic_folder

    store, path = _opened(place)
    with atomic_folder(folder) as temporary:
        copy_files(path, str(temporary), source_filesystem=store, destination_filesystem=LocalFileSystem())
    return folder


def delete_folder(place: str) -> None:
    """Delete what lies there, if anything does."""
    if not is_object_store(place):
        shutil.rmtree(place, ignore_errors=True)
        return
    store, path = _opened(place)
    with suppress(OSError):
        store.delete_dir(path)


def _opened(place: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem, LocalFileSystem

    if is_object_store(place):
        store, path = FileSystem.from_uri(place)
        return store, path.rstrip("/")
    return LocalFileSystem(), place
