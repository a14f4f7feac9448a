"""One config for each method, for slides and labels of your own."""

import ast
import functools
import importlib.util
import pathlib

from wsi_jax.run.config_file import named_choice

_FOLDER = pathlib.Path(__file__).parent
# The config file of methods found by their import path.
_BY_IMPORT_PATH = "_by_import_path"
ENCODER = "ENCODER"  # stands for the name of any encoder of encoders.toml


def methods() -> dict[str, str]:
    """Names of the methods, with the first line of each config's docstring."""
    names = sorted(path.stem for path in _FOLDER.glob("[!_]*.py"))
    return {name: ast.get_docstring(_source(name)).splitlines()[0] for name in names}


def variants(method: str) -> tuple[str, ...]:
    """What may stand behind a method's name and a colon; read without importing it."""
    tree, names = _source(method), []
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name("VARIANTS")], value=ast.Dict(keys=keys)):
                names += [key.value for key in keys]
            case ast.FunctionDef(name="get_config") if node.args.args:
                if node.args.args[0].arg == "encoder":
                    names.append(ENCODER)
    functions = [n.name for n in _source("abmil").body if hasattr(n, "name")]
    if ENCODER in names and "quick" in functions:  # what all frozen encoders share
        names.insert(0, "quick")
    return tuple(names)


def config_path(method: str) -> str:
    """The file of a method's config; of "abmil:uni2_h", with its argument.

    Of "my_package.my_method:NAME", a method of one's own, the file that imports it.

    Raises:
        ValueError: no such method, with the names that there are; or what does not
            import.
    """
    name, colon, argument = method.partition(":")
    files = {one: f"{_FOLDER / one}.py" for one in methods()}
    if colon and name not in files and ("." in name or _is_module(name)):
        from wsi_jax.configs import _by_import_path  # needs JAX

        _by_import_path.get_config(method)
        return f"{_FOLDER / _BY_IMPORT_PATH}.py:{method}"
    return named_choice(name, files) + colon + argument


def _is_module(name: str) -> bool:
    return name.isidentifier() and importlib.util.find_spec(name) is not None


@functools.cache
def _source(method: str) -> ast.Module:
    return ast.parse((_FOLDER / f"{method}.py").read_text(encoding="utf-8"))
