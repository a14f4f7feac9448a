"""What `wsi-jax list` and `wsi-jax show` print, without importing what they list."""

import ast
import pathlib
import shlex
import shutil
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from wsi_jax import configs
from wsi_jax.config_fields import describe
from wsi_jax.run.config_file import nearest_or_all

CHECKOUT = pathlib.Path("experiments/configs")
ENCODERS = pathlib.Path(__file__).parent.parent / "nets" / "encoders.toml"


def methods() -> str:
    """The methods that `--method` takes, and their variants."""
    lines = {}
    for name, summary in configs.methods().items():
        variants = ", ".join(f":{one}" for one in configs.variants(name))
        lines[name] = summary + (f" Variants: {variants}." if variants else "")
    return _table("methods: wsi-jax train --method NAME[:VARIANT]", lines)


def encoders() -> str:
    """Published encoders, where their weights are and what they ask for."""
    lines = {}
    for name, facts in tomllib.loads(ENCODERS.read_text(encoding="utf-8")).items():
        terms = [facts.get("licence", ""), "gated: asks for consent and a token"]
        terms = [term for term in terms[: 1 + bool(facts.get("gated"))] if term]
        where = f"huggingface.co/{facts['hub']}"
        lines[name] = "; ".join([facts["title"], where, *terms])
    return _table("encoders: wsi-jax train --method abmil:NAME", lines)


def checkout_configs() -> str:
    """Configs of the named cohorts, where the command is given in a checkout."""
    files = sorted(path for path in CHECKOUT.rglob("[!_]*.py"))
    first = lambda path: ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
    lines = {_name(path): first(path) for path in files}
    return _table(f"configs of this checkout: --config {CHECKOUT}/NAME.py", lines)


def _name(path: pathlib.Path) -> str:
    return path.relative_to(CHECKOUT).with_suffix("").as_posix()


def _table(title: str, lines: Mapping[str, str]) -> str:
    """Names and what they mean, wrapped to the width of the terminal."""
    width, indent = shutil.get_terminal_size().columns, max(map(len, lines)) + 4
    rows = [
        textwrap.fill(
            f"  {name:<{indent - 4}}  {text}",
            width,
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
        for name, text in lines.items()
    ]
    return "\n".join([title, "", *rows])


def config_file(name: str) -> str:
    """The file of a config by a method's name, a name of `list configs`, or its path.

    A variant behind a colon is kept.

    Raises:
        ValueError: there is none of this name.
    """
    file, colon, argument = name.partition(":")
    methods = configs.methods()
    plain = file.removeprefix("cohort/")  # "cohort/sasha" is that of any manifest
    if plain in methods:
        return configs.config_path(plain + colon + argument)
    if file.endswith(".py"):
        return name
    files = {_name(path): str(path) for path in CHECKOUT.rglob("[!_]*.py")}
    if file in files:
        return files[file] + colon + argument
    if colon:
        return configs.config_path(name)  # a method of one's own
    raise ValueError(f"no config {name!r}{nearest_or_all(file, [*methods, *files])}")


def fields(config: Any, below: str = "") -> Iterator[str]:
    """Paragraphs on the fields of a config, each as it is set on the command line.

    Args:
        config: the config.
        below: a part, as "train.optimiser", or a field; "" for all.

    Raises:
        ValueError: no such part.
    """
    rows = describe(config)
    paths = [row.path for row in rows]
    below = below.removeprefix("--").removeprefix("config.")
    if below and below not in paths:
        raise ValueError(f"no field {below!r}{nearest_or_all(below, paths)}")
    width = shutil.get_terminal_size().columns
    for row in rows:
        if below and row.path != below and not row.path.startswith(f"{below}."):
            continue
        if any(path.startswith(f"{row.path}.") for path in paths):
            yield "\n" + textwrap.fill(f"{row.path} ({row.type}): {row.meaning}", width)
            continue
        value = shlex.quote(row.default) if row.default else ""
        text = textwrap.fill(f"({row.type}) {row.meaning}", width - 6)
        yield f"  --config.{row.path}={value}\n{textwrap.indent(text, ' ' * 6)}"
