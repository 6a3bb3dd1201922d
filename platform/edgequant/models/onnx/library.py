"""The pinned packages that draw and run ONNX graphs. Light: imports none of them."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from edgequant.errors import UserError

# The builder's methods are overridden as they are in this version.
PACKAGES = {"onnxruntime-genai": "0.18.0", "onnxruntime": "1.32.0", "onnx": "1.23.2", "onnx-ir": "1.1.0"}
INSTALL = "pip install " + " ".join(f"{name}=={version}" for name, version in PACKAGES.items())


def missing() -> str | None:
    """The first of the packages that is absent, or here in another version; None where all are as pinned."""
    for name, version in PACKAGES.items():
        if importlib.util.find_spec(name.replace("-", "_")) is None:
            return f"{name} is not installed"
        if (found := metadata.version(name)) != version:
            return f"{name} is {found} and not {version}"
    return None


def check_installed(what: str = "format onnx") -> None:
    """Refuse to begin without them.

    Raises:
        UserError: names the package and what to install.
    """
    if (lacking := missing()) is not None:
        raise UserError(
            f"{what} needs onnxruntime-genai and what it builds with, but {lacking}: {INSTALL} (make setup installs it)"
        )
