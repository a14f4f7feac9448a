"""Imports point down: what each room may import, the package's own and others'."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "wsi_jax"

FLOORS = {
    "types": 0,
    "config_fields": 0,
    "provenance": 0,
    "files": 0,
    "locks": 1,
    "ops": 1,
    "nets": 2,
    "slides": 2,
    "data": 2,
    "training": 2,
    "evals": 2,
    "report": 2,
    "methods": 3,
    "run": 4,
    "configs": 5,
    "api": 6,
    "commands": 6,
    "cli": 7,
    "__init__": 7,
}
SIDEWAYS = {("data", "slides"), ("report", "slides")}
ONLY_IN = {
    "flax": {"nets"},
    "tensorflow": {"data"},
    "tensorflow_datasets": {"data"},
    "h5py": {"data"},
    "openslide": {"slides"},
    "tifffile": {"slides"},
    "orbax": {"training"},
    "safetensors": {"nets"},
    "matplotlib": {"report"},
    "ml_collections": {"commands"},
    "typer": {"cli", "commands"},
    "jinja2": {"report"},
    "rich": {"run"},
}
NOT_IN = {"jax": {"slides", "evals", "report"}, "optax": {"slides", "data", "ops"}}

# Sizes that a reader can hold, and words that only their makers understand.
CODE = sorted(
    path
    for folder in ("wsi_jax", "experiments", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
FILE_LINES, FUNCTION_LINES, POSITIONAL = 300, 60, 8
PRIVATE = {
    *("said", "told", "sight", "sift", "outlook", "survey", "zoomed", "passage"),
    *("likeness", "astray", "liking", "ways"),
}
PRIVATE_ALONE = {"found", "seen", "how", "known"}


def imports(path):
    """The absolute names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = room(path)
    for name in imports(path):
        first, *rest = name.split(".")
        if first == "wsi_jax" and rest:
            there = rest[0]
            if there not in FLOORS:  # a name of wsi_jax/__init__.py
                continue
            below = FLOORS[there] < FLOORS[here] or there == here
            assert below or (here, there) in SIDEWAYS, f"{here} imports {name}"
            assert (here, there) != ("methods", "methods"), "methods stand alone"
        assert first not in ("experiments", "benchmarks", "tests")
        assert here in ONLY_IN.get(first, {here}), f"{here} imports {first}"
        assert here not in NOT_IN.get(first, ()), f"{here} imports {first}"


def test_every_room_has_a_floor():
    assert {room(path) for path in FILES} == set(FLOORS)


def test_what_runs_on_an_accelerator_needs_no_reader_of_slides():
    """Imports where tensorflow, openslide and their like are not installed."""
    absent = ("tensorflow", "tensorflow_datasets", "openslide", "ml_collections")
    program = f"""
import importlib, pathlib, pkgutil, sys
sys.modules.update(dict.fromkeys({absent!r}))
import wsi_jax, wsi_jax.types, benchmarks.accelerator
for name in ("ops", "nets", "methods", "training"):
    room = importlib.import_module("wsi_jax." + name)
    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(room.__name__ + "." + module.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_temporary_names_are_made_in_one_place():
    """Else two processes could write to one of them."""
    outside = [*ROOT.glob("experiments/*.py"), *ROOT.glob("benchmarks/*.py")]
    for path in {*FILES, *outside} - {PACKAGE / "files.py"}:
        text = path.read_text()
        for own in ("os.replace", "os.rename", 'with_name(f".'):
            assert own not in text, f"{path}: {own}; use wsi_jax.files.replacing"


def names(tree):
    """Identifiers that a file writes down, with their lines."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.keyword(arg=str(name)):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name


def faults(path):
    """What makes a file hard to hold in mind, with lines."""
    text = path.read_text(encoding="utf-8")
    if (n := len(text.splitlines())) > FILE_LINES:
        yield 1, f"{n} lines"
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            n = node.end_lineno - node.lineno + 1
            if n > FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {n} lines"
        if isinstance(node, ast.Call) and len(node.args) > POSITIONAL:
            yield node.lineno, f"{len(node.args)} positional arguments"
    for line, name in names(tree):
        words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
        if words & PRIVATE or name in PRIVATE_ALONE:
            yield line, f"{name} is a word of our own; say what it is"


def test_every_file_can_be_held_in_mind():
    every = [
        f"{path.relative_to(ROOT)}:{line}: {fault}"
        for path in CODE
        for line, fault in faults(path)
    ]
    assert every == []
