"""Tar archives, packed or not, and single files that are packed: read from front to back."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from edgequant.corpora.extraction.extracted import ExtractionError
from edgequant.corpora.processing.archives.listing import Listing, Place

BLOCK = 512
BROKEN = (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)


class Packer(NamedTuple):
    """What the bytes of an archive went through; `ending` is what it puts behind a name."""

    magic: bytes
    ending: str
    open: Callable[[str, str], Any]

    def holds_a_tar(self, path: str) -> bool:
        """Whether the bytes begin as a tar archive does."""
        try:
            with self.open(path, "rb") as stream:
                block = stream.read(BLOCK)
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except BROKEN:
            return False
        return True


PLAIN = Packer(b"ustar", "", open)
PACKERS = (
    Packer(b"\x1f\x8b", ".gz", gzip.open),
    Packer(b"BZh", ".bz2", bz2.open),
    Packer(b"\xfd7zXZ\x00", ".xz", lzma.open),
)


def packer_of(path: str) -> Packer | None:
    """None for a file that is neither packed nor a tar archive."""
    with open(path, "rb") as handle:
        head = handle.read(BLOCK)
    if head[257:262] == PLAIN.magic:
        return PLAIN
    return next((packer for packer in PACKERS if head.startswith(packer.magic)), None)


class TarArchive:
    """A place is (first byte, length) in the unpacked stream; members are best read in the archive's order."""

    def __init__(self, path: str, packer: Packer) -> None:
        self._path, self._stream, self._is_packed = path, packer.open(path, "rb"), packer is not PLAIN

    def list_into(self, listing: Listing) -> None:
        try:
            self._stream.seek(0)
            with tarfile.open(fileobj=self._stream, mode="r:") as tar:
                # no further than each member: its bytes are passed over when the next is asked for
                for member in iter(tar.next, None):
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                    if not member.isdir() and not self._add(member, listing):
                        return
                self._stream.seek(tar.offset)
                if self._stream.read(BLOCK).strip(b"\0"):
                    raise ExtractionError(f"damaged archive: no member begins at its byte {tar.offset:,}")
        except BROKEN as error:
            raise ExtractionError(f"damaged archive: {error}") from None

    def _add(self, member: tarfile.TarInfo, listing: Listing) -> bool:
        unpacked = max(0, member.size)
        packed = None if self._is_packed else unpacked
        place = (member.offset_data, unpacked)
        return listing.add(member.name, place, unpacked=unpacked, packed=packed, refused=_why_refused(member))

    def read(self, place: Place, limit: int) -> bytes:
        begin, length = place
        try:
            self._stream.seek(begin)
            content = bytes(self._stream.read(min(length, limit + 1)))
        except BROKEN as error:
            raise ExtractionError(f"damaged archive member: {error}") from None
        if len(content) < min(length, limit + 1):
            raise ExtractionError("damaged archive member: the archive ends within it")
        return content

    def close(self) -> None:
        self._stream.close()


class OneFile:
    """A single packed file, such as report.txt.gz: an archive of one member."""

    def __init__(self, path: str, packer: Packer) -> None:
        self._path, self._packer = path, packer

    def list_into(self, listing: Listing) -> None:
        name = self._path.replace("\\", "/").rsplit("/", 1)[-1]
        listing.add(name.removesuffix(self._packer.ending).lstrip(".") or "file", (0, 0), unpacked=0, packed=None)

    def read(self, place: Place, limit: int) -> bytes:
        try:
            with self._packer.open(self._path, "rb") as stream:
                return bytes(stream.read(limit + 1))
        except BROKEN as error:
            raise ExtractionError(f"damaged packed file: {error}") from None

    def close(self) -> None:
        """It is open only while it is read."""


def _why_refused(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "link to another file; not followed"
    if not member.isreg():
        return "no regular file (device or pipe)"
    return "sparse file; not read" if member.issparse() else ""
