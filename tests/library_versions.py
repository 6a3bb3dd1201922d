"""Skips where a library of the lowest version that is admitted cannot do what a test wants of it alone."""

from __future__ import annotations

import pytest
import transformers
from packaging.version import Version


def needs_transformers(version: str, to: str) -> None:
    """Skip a test of what transformers alone reads where it is too old for that."""
    if Version(transformers.__version__) < Version(version):
        pytest.skip(f"transformers {transformers.__version__} cannot {to}; {version} can")
