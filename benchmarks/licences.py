"""Licences of what the wheel needs, and of what that needs, as the packages state them.

python -m benchmarks.licences --out benchmarks/results/licences.json
"""

import pathlib
import re
import tomllib
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import record

PROJECT = pathlib.Path(__file__).parent.parent / "pyproject.toml"
# Terms under which Apache-2.0 software may use a package that it does not change.
FREE = re.compile(
    r"\b(apache|mit|bsd|0bsd|isc|psfl?|python software foundation|zlib|cc0|afl|ijg|"
    r"blessing|libpng|libtiff|public[- ]domain|mpl|mozilla|with gcc-exception)\b"
)
# Under the LGPL: a shared library and its Python module, loaded as they are.
SHARED = {"openslide-bin", "openslide-python"}
UNSTATED = {"namex": "Apache-2.0"}  # its metadata are silent; its file LICENSE is not


def licences() -> list[dict]:
    """Package, version and licence of all that pyproject.toml needs on this machine."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    queue, visited, rows = [(line, "") for line in project["dependencies"]], set(), {}
    while queue:
        line, extra = queue.pop()
        need = Requirement(line)
        if need.marker and not need.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(need.name)
        for pair in {(name, wanted) for wanted in ("", *need.extras)} - visited:
            visited.add(pair)
            package = metadata.distribution(name)
            queue += [(line, pair[1]) for line in package.requires or ()]
            licence = _stated(package.metadata) or UNSTATED.get(name, "")
            rows[name] = name, package.version, licence
    columns = "package", "version", "licence"
    return [dict(zip(columns, row, strict=True)) for _, row in sorted(rows.items())]


def _stated(facts: metadata.PackageMetadata) -> str:
    """An SPDX expression, else classifiers, else the first line of a text."""
    classifiers = [c.split(" :: ") for c in facts.get_all("Classifier", ())]
    classes = [c[-1] for c in classifiers if c[0] == "License" and len(c) > 2]
    first = (facts.get("License") or "").strip().partition("\n")[0]
    return facts.get("License-Expression") or " AND ".join(classes) or first


def allowed(package: str, licence: str) -> bool:
    """Whether software under Apache-2.0 may need a package with this licence.

    Of alternatives (OR) one is enough; of terms that hold together (AND) all must do.
    """

    def free(term: str) -> bool:
        if re.search(r"gpl|general public", term) and "gcc-exception" not in term:
            lesser = re.search(r"\blgpl|lesser general", term)
            return package in SHARED and lesser is not None
        return FREE.search(term) is not None

    terms = [term.split(" or ") for term in licence.lower().split(" and ")]
    return all(any(map(free, alternatives)) for alternatives in terms)


if __name__ == "__main__":
    record.main(__doc__, lambda _: licences())
