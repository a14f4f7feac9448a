"""One config for each method, for slides and labels of your own."""

import ast
import pathlib

from wsi_jax.run.config_file import choose

_FOLDER = pathlib.Path(__file__).parent


def methods() -> dict[str, str]:
    """Names of the methods, with the first line of each config's docstring."""
    files = sorted(path for path in _FOLDER.glob("*.py") if path.stem != "__init__")
    first = lambda path: ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
    return {path.stem: first(path) for path in files}


def config_path(method: str) -> str:
    """The file of a method's config; of "abmil:uni2_h", with its argument.

    Raises:
        ValueError: no such method; with the names that there are.
    """
    name, colon, argument = method.partition(":")
    files = {one: f"{_FOLDER / one}.py" for one in methods()}
    return choose(name, files) + colon + argument
