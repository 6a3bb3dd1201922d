"""Which kind of archive a file is."""

from __future__ import annotations

import os
from typing import Protocol

from edgequant.corpora.extraction.extracted import ExtractionError
from edgequant.corpora.processing.archives.listing import Listing, Place
from edgequant.corpora.processing.archives.tar_archive import OneFile, TarArchive, packer_of
from edgequant.corpora.processing.archives.zip_archive import ZipArchive, is_zip_of_documents
from edgequant.corpora.settings import CorpusSettings


class Archive(Protocol):
    """A file that holds files; kept open while its members are read."""

    def list_into(self, listing: Listing) -> None:
        """Add every member in order, until the listing has enough."""

    def read(self, place: Place, limit: int) -> bytes:
        """A member's bytes, and one more than `limit` of a longer one.

        Raises:
            ExtractionError: damaged.
        """

    def close(self) -> None:
        """Close the file."""


def open_archive(path: str) -> Archive | None:
    """None for a file that is no archive of documents.

    Raises:
        OSError: the file cannot be read.
        ExtractionError: it begins as an archive and is damaged.
    """
    if is_zip_of_documents(path):
        return ZipArchive(path)
    packer = packer_of(path)
    if packer is None:
        return None
    return TarArchive(path, packer) if packer.holds_a_tar(path) else OneFile(path, packer)


def list_archive(archive: Archive, path: str, settings: CorpusSettings) -> Listing:
    """What an archive holds; a damaged one as far as it can be read.

    Raises:
        ExtractionError: it is damaged before its first member.
    """
    listing = Listing(settings, os.path.getsize(path))
    try:
        archive.list_into(listing)
    except ExtractionError as error:
        if not listing.members and not listing.left_out:
            raise
        listing.end = str(error)
    return listing
