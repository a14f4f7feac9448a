"""`import wsi_jax` costs nothing, and has what it says."""

import ast
import inspect
import pathlib
import subprocess
import sys

import wsi_jax

HEAVY = "jax", "tensorflow", "openslide", "numpy", "matplotlib"


def modules_after(program):
    """Which of the heavy packages a program has loaded."""
    program += f"\nimport sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_import_is_light():
    assert modules_after("import wsi_jax; wsi_jax.__version__; dir(wsi_jax)") == set()
    loaded = modules_after("import wsi_jax; wsi_jax.tile; wsi_jax.open_slide")
    assert not loaded & {"jax", "tensorflow"}, "slides are read without them"


def test_every_name_is_there_with_words():
    for name in wsi_jax.__all__:
        thing = getattr(wsi_jax, name)
        assert name in dir(wsi_jax)
        assert thing.__doc__
        if inspect.isfunction(thing):
            _, arguments = thing.__doc__.split("Args:")
            missing = [
                p
                for p in inspect.signature(thing).parameters
                if f" {p}: " not in arguments
            ]
            assert not missing, f"{name} says what {missing} are"


def test_type_checkers_see_what_is_imported():
    tree = ast.parse(pathlib.Path(wsi_jax.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    promised = {alias.name: node.module for node in block.body for alias in node.names}
    assert promised == wsi_jax._MODULES
    assert sorted(promised) == sorted(wsi_jax.__all__)
    package = pathlib.Path(wsi_jax.__file__).parent
    assert (package / "py.typed").is_file()
