"""Zip archives: the central directory is read once, members are opened by their number in it."""

from __future__ import annotations

import stat
import zipfile
import zlib
from itertools import pairwise
from lzma import LZMAError

from edgequant.corpora.extraction.extracted import ExtractionError
from edgequant.corpora.processing.archives.listing import Listing, Place

HEADER = 30  # bytes in front of a member's name
BROKEN = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError, zlib.error, LZMAError)


class ZipArchive:
    """Its members are opened in any order; a place is (number in the directory, 0)."""

    def __init__(self, path: str) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except BROKEN as error:
            raise ExtractionError(f"damaged archive: {error}") from None
        self._members = self._zip.infolist()

    def list_into(self, listing: Listing) -> None:
        overlapping = self._overlapping()
        for number, member in enumerate(self._members):
            if member.is_dir():
                continue
            refused = _why_refused(member) or ("overlaps another member (bomb?)" if number in overlapping else "")
            sizes = {"unpacked": member.file_size, "packed": member.compress_size}
            if not listing.add(member.filename, (number, 0), refused=refused, **sizes):
                return

    def read(self, place: Place, limit: int) -> bytes:
        try:
            with self._zip.open(self._members[place[0]]) as handle:
                return handle.read(limit + 1)  # what the archive says about sizes need not be true
        except BROKEN as error:
            raise ExtractionError(f"damaged archive member: {error}") from None

    def close(self) -> None:
        self._zip.close()

    def _overlapping(self) -> set[int]:
        """Members whose bytes are other members' too: a few bytes can then unpack to any number."""
        order = sorted(range(len(self._members)), key=lambda number: self._members[number].header_offset)
        ends = [_end(self._members[number]) for number in order]
        found = {
            number
            for (at, first), (_, second) in pairwise(enumerate(order))
            if ends[at] > self._members[second].header_offset
            for number in (first, second)
        }
        return found | {number for at, number in enumerate(order) if ends[at] > self._zip.start_dir}


def is_zip_of_documents(path: str) -> bool:
    """As against a DOCX, spreadsheet or e-book, which are zip files too."""
    with open(path, "rb") as handle:
        if handle.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.NameToInfo
    except BROKEN:
        return False  # told where files are read
    return "[Content_Types].xml" not in names and "mimetype" not in names


def _end(member: zipfile.ZipInfo) -> int:
    name = member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437", errors="replace")
    return member.header_offset + HEADER + len(name) + member.compress_size


def _why_refused(member: zipfile.ZipInfo) -> str:
    if stat.S_ISLNK(member.external_attr >> 16):
        return "symbolic link; not followed"
    return "encrypted archive member; needs its password" if member.flag_bits & 1 else ""
