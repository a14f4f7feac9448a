"""The version of a checkout, of a build, and of what cites it."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
FALLBACK = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
    "setuptools_scm"
]["fallback_version"]


def version_in(folder):
    """`wsi_jax.__version__` of the package in a folder, in a process of its own."""
    program = "import wsi_jax; print(wsi_jax.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_without_a_build_the_version_is_the_fallback(tmp_path):
    (tmp_path / "wsi_jax").mkdir()
    shutil.copy(ROOT / "wsi_jax" / "__init__.py", tmp_path / "wsi_jax")
    assert version_in(tmp_path) == FALLBACK
    (tmp_path / "wsi_jax" / "version.txt").write_text("0.3.0.dev7\n")
    assert version_in(tmp_path) == "0.3.0.dev7"


def test_citation_and_changes_have_the_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.+)$", citation, re.M)[1] == FALLBACK
    assert f"\n## {FALLBACK}\n" in (ROOT / "CHANGELOG.md").read_text()
