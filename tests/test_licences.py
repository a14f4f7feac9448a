"""What the wheel needs may be used by software under Apache-2.0."""

import json

import pytest

from benchmarks.licences import allowed, licences
from benchmarks.tables import RESULTS

LISTED = json.loads((RESULTS / "licences.json").read_text())["rows"]


@pytest.mark.parametrize("place", ["here", "page"])
def test_every_package_may_be_used(place):
    rows = licences() if place == "here" else LISTED
    assert len(rows) > 80
    assert [r for r in rows if not allowed(r["package"], r["licence"])] == []


MAY = "MIT", "MPL-2.0 AND MIT", "BSD-3-Clause OR GPL-2.0-only"
MAY_NOT = "", "GPL-2.0-only AND MIT", "AGPL-3.0-or-later", "CC-BY-NC-4.0"


@pytest.mark.parametrize("text", [*MAY, *MAY_NOT, "GNU General Public License (GPLv3)"])
def test_terms(text):
    assert allowed("openslide-bin", text) == allowed("another", text) == (text in MAY)


def test_the_lgpl_is_for_shared_libraries_and_the_gpl_for_compilers():
    assert allowed("openslide-bin", "LGPL-2.1-only")
    assert not allowed("another", "LGPL-2.1-only")
    assert allowed("another", "GPL-3.0-or-later WITH GCC-exception-3.1")
