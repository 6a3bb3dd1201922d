"""The GGUF formats that export offers. Light: the command line reads it before anything heavy is loaded."""

from __future__ import annotations

from edgequant.errors import UserError

# Name -> bits per weight with scales. All are formats of llama.cpp that the gguf package writes bit for bit.
FORMATS = {"q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5, "f16": 16.0, "bf16": 16.0, "f32": 32.0}
BLOCK = 32  # values that share a scale in every quantised format above


def check_format(name: str, parameter: str = "format") -> str:
    """The format's name.

    Raises:
        UserError: unknown format; names the known ones.
    """
    if name not in FORMATS:
        raise UserError(f"{parameter} {name!r} is unknown; expected one of {', '.join(FORMATS)}")
    return name
