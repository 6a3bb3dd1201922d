"""No package under the GPL or AGPL is installed, and docs/licenses.md lists every one with its licence."""

from __future__ import annotations

import pytest
from licenses import DOCUMENT, is_strong_copyleft, license_of, packages, table


def test_no_installed_package_is_under_the_gpl_or_agpl_and_each_says_what_it_is_under():
    found = {package: license_of(package) for package in packages()}
    assert {package: license for package, license in found.items() if is_strong_copyleft(license)} == {}
    assert [package for package, license in found.items() if not license] == []
    assert {package for package, license in found.items() if "LGPL" in license} == {"pycountry"}


def test_the_document_lists_them_all():
    assert table() in DOCUMENT.read_text(), "run: python tests/documents/licenses.py"


@pytest.mark.parametrize(
    ("license", "strong"),
    [
        ("GPL-3.0-only", True), ("AGPL-3.0", True), ("MIT OR GPL-2.0", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("GNU Affero General Public License v3", True), ("GPLv2", True),
        ("LGPL-2.1-only", False), ("GNU Lesser General Public License v2 (LGPLv2)", False), ("MIT", False),
    ],
)  # fmt: skip
def test_which_licences_are_strong_copyleft(license, strong):
    assert is_strong_copyleft(license) is strong
