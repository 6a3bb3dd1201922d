"""`sync`: file what runs kept on disk because their tracking server was away.

edgequant sync                                          # all runs of the working folder
edgequant sync --folder outputs/qat/RUN_ID
"""

from __future__ import annotations

from pathlib import Path

from edgequant.errors import UserError


def sync(*, folder: str = "outputs") -> None:
    """File with the tracking server what runs kept on disk while it was away.

    Args:
        folder: of a run, or one that holds runs.

    Raises:
        UserError: no such folder, or the server does not answer or is another one.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UserError(f"folder {folder!r} not found; name a run's, such as outputs/qat/RUN_ID, or leave it out")

    from edgequant import tracking

    if not tracking.file_kept(place):
        print(f"nothing waits for the tracking server below {folder!r}")
