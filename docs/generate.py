"""Writes the generated parts of the pages: fields, the Python reference, tables.

    python -m docs.generate

`docs/fields.md` and `docs/api.md` are written whole, from dataclasses and docstrings.
Tables of results, in any page, are those of `benchmarks.tables`.
"""

import argparse
import dataclasses
import functools
import importlib
import inspect
import pathlib
import re
from typing import Any

from benchmarks import tables
from wsi_jax import configs
from wsi_jax.config_fields import describe, is_config
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder, Encoder
from wsi_jax.nets.trunk import Trunk
from wsi_jax.nets.vit_encoder import ViTEncoder
from wsi_jax.run.config_file import read_config
from wsi_jax.training.optimiser import Optimiser

DOCS = pathlib.Path(__file__).parent

FIELDS_OPENING = """# Fields of configs

Every field that `wsi-jax train` and `wsi-jax extract` take, with its value in the
method's config. [Configs](configs.md) says how to set one. This page is made from the
code by `python -m docs.generate`.
"""
# Sections of fields.md: title, part of the config, what stands there.
COMMON = (
    ("The run", "", "Fields of every method; values are those of `abmil`."),
    ("Cohort", "data", "Slides, labels and splits; see the [manifest](manifest.md)."),
    ("Tiles", "grid", "The grid of tiles."),
    ("Tissue", "tissue", "What counts as tissue, and what as background."),
    ("Training", "train", "How long, how fast, and when to stop."),
    ("Reading", "reading", "Reading tiles from slides."),
    ("Loading", "loading", "Reading features as bags."),
)
ENCODERS = (Encoder, ConvNeXtEncoder, ViTEncoder)
# Methods that share their fields stand in one section, with the values of the first.
METHODS = (
    ("max", "mean"),
    ("abmil", "quick"),
    ("clam_sb", "clam_mb"),
    ("streaming_clam",),
    ("attention_sampling",),
    ("attention_pooling",),
    ("sasha",),
)
API_OPENING = """# Python reference

Functions and classes for a notebook or a program of your own. [Python](python.md) shows
them at work. This page is made from docstrings by `python -m docs.generate`.
"""
# Sections of api.md: title, and the names below it; "*" is all that a module offers.
API = (
    ("The package", ("wsi_jax.*",)),
    (
        "A trained run",
        (
            "wsi_jax.run.finished_run.Run",
            "wsi_jax.run.predict.slide_predictor.SlidePredictor",
            "wsi_jax.run.predict.predictor.Predictor",
            "wsi_jax.run.predict.ensemble.Ensemble",
            "wsi_jax.run.predict.slide_prediction.SlidePrediction",
            "wsi_jax.run.predict.slide_prediction.SlidePredictions",
        ),
    ),
    (
        "Slides",
        (
            "wsi_jax.slides.slide.open_slide",
            "wsi_jax.slides.slide.Slide",
            "wsi_jax.slides.slide_tiles.SlideTiles",
            "wsi_jax.slides.reader_protocol.Reader",
        ),
    ),
    (
        "Bags as arrays",
        ("wsi_jax.run.fit_bags.BagModel", "wsi_jax.run.fit_bags.BagPrediction"),
    ),
    (
        "Cohorts and configs",
        (
            "wsi_jax.data.cohort.read_manifest",
            "wsi_jax.data.cohort.Cohort",
            "wsi_jax.data.cohort.Row",
            "wsi_jax.run.config.Experiment",
            "wsi_jax.run.config.Manifest",
        ),
    ),
    (
        "A method of your own",
        (
            "wsi_jax.types.Method",
            "wsi_jax.types.Stage",
            "wsi_jax.types.Bag",
            "wsi_jax.types.Prediction",
        ),
    ),
)
# Sections of a docstring whose lines are "name: text".
LISTS = {"Args": "Arguments", "Attributes": "Attributes", "Raises": "Errors"}


def fields_page() -> str:
    """fields.md: a table of the fields of each part of a config."""
    parts = [FIELDS_OPENING]
    common = read_config(configs.config_path("abmil"), "Experiment")
    for title, part, text in COMMON:
        parts += [f"## {title}\n", f"{text}\n", _table(common, part)]
    parts += [
        "## Encoder\n",
        "One of these. Methods with a trunk of their own have the ",
    ]
    parts[-1] += "same fields below `method.trunk`.\n"
    for encoder in ENCODERS:
        opening = inspect.getdoc(encoder).partition("\n")[0]
        parts += [f"### {encoder.__name__}\n", f"{opening}\n"]
        config = dataclasses.replace(common, encoder=encoder())
        parts += [_table(config, "encoder")]
    parts += ["## Methods\n"]
    missing = set(configs.methods()) - {name for names in METHODS for name in names}
    for names in [*METHODS, *((name,) for name in sorted(missing))]:
        config = read_config(configs.config_path(names[0]), "Experiment")
        parts += [f"### {', '.join(names)}\n"]
        parts += [f"- `{name}`: {configs.methods()[name]}" for name in names]
        parts += ["", _table(config, "method")]
    return "\n".join(parts)


def api_page() -> str:
    """api.md: signatures and docstrings of public functions and classes."""
    parts = [API_OPENING]
    for title, names in API:
        parts += [f"## {title}\n"]
        for name in names:
            for full, thing in _named(name):
                parts += _documented(full, thing)
    return "\n".join(parts)


def pages() -> dict[pathlib.Path, str]:
    """{file: text} of the pages that are written whole."""
    return {DOCS / "fields.md": fields_page(), DOCS / "api.md": api_page()}


def _table(config: Any, part: str) -> str:
    """Fields of a part of a config, with all below it; "" is the run's own."""
    shown, skipped = [], ()
    for field in describe(config):
        own = "." not in field.path if not part else field.path.startswith(f"{part}.")
        if not own or field.path.startswith(skipped):
            continue
        value = getattr_path(config, field.path)
        if not is_config(value):
            shown.append(field)
        elif note := _elsewhere(value, part):
            skipped = (*skipped, f"{field.path}.")
            path, meaning = f"{field.path}.*", f"{field.meaning} {note}"
            shown.append(field._replace(path=path, meaning=meaning))
    lines = ["| field | value | what it takes | what it is |", "|---|---|---|---|"]
    for field in shown:
        path, kind, value, meaning = field
        kind = kind.replace(" | ", ", ")
        lines.append(f"| `{path}` | {_value(value)} | {kind} | {meaning} |")
    return "\n".join(line.replace("<", "&lt;") for line in lines) + "\n"


def _elsewhere(value: Any, part: str) -> str:
    """Where the fields of a part of a method stand, if not here."""
    if isinstance(value, Optimiser) and part != "train":
        return "Fields as those of `train.optimiser`."
    if isinstance(value, Trunk) and part == "method":
        return "Fields as those of an [encoder](#encoder)."
    return ""


def getattr_path(config: Any, path: str) -> Any:
    """The value at "train.steps"."""
    return functools.reduce(getattr, path.split("."), config)


def _value(text: str) -> str:
    if re.fullmatch(r"0\.\d{6,}", text):
        text = f"{float(text):.4g}"
    return "" if text in ("", "()") else f"`{text}`"


def _named(name: str) -> list[tuple[str, Any]]:
    """The thing of this full name, or the public functions of a module: "wsi_jax.*"."""
    module, _, last = name.rpartition(".")
    module = importlib.import_module(module)
    if last != "*":
        return [(name, getattr(module, last))]
    public = getattr(module, "__all__", None) or vars(module)
    things = [(f"{module.__name__}.{n}", getattr(module, n)) for n in public]
    return [(n, t) for n, t in things if inspect.isfunction(t) and "._" not in n]


def _documented(name: str, thing: Any, level: int = 3) -> list[str]:
    """Heading, signature and docstring; of a class, those of its methods too."""
    heading = f"{'#' * level} {name}\n"
    body = _docstring(inspect.getdoc(thing) or "")
    if not inspect.isclass(thing):
        return [heading, f"```python\n{_signature(name, thing)}\n```\n", body]
    parts = [heading, body]
    if dataclasses.is_dataclass(thing):  # its fields are what a reader sets
        return parts
    for method, function in vars(thing).items():
        if inspect.isfunction(function) and not method.startswith("_"):
            parts += _documented(f"{thing.__name__}.{method}", function, level + 1)
    return parts


def _signature(name: str, function: Any) -> str:
    """The call, with defaults and without types: what a reader types."""
    parameters = inspect.signature(function).parameters.values()
    bare = [p.replace(annotation=p.empty) for p in parameters if p.name != "self"]
    text = f"{name}{inspect.Signature(bare)}"
    return re.sub(r"<function (\w+) at 0x\w+>", r"\1", text)


def _docstring(text: str) -> str:
    """A docstring as Markdown."""
    opening, *_ = re.split(r"^(?:Args|Attributes|Raises|Returns):$", text, flags=re.M)
    parts = [f"{opening.strip()}\n"]
    for section, lines in _sections(text).items():
        if section == "Returns":
            parts += [f"Returns: {' '.join(t for _, t in lines)}\n"]
        else:
            listed = "\n".join(f"- `{name}`: {line}" for name, line in lines)
            parts += [f"{LISTS[section]}:\n", f"{listed}\n"]
    return "\n".join(parts)


def _sections(text: str) -> dict[str, list[tuple[str, str]]]:
    """{"Args": [(name, text), ...], ...} of a docstring."""
    sections: dict[str, list[tuple[str, str]]] = {}
    section = None
    for line in inspect.cleandoc(text).splitlines():
        if match := re.fullmatch(r"(Args|Attributes|Raises|Returns):", line):
            section = sections.setdefault(match[1], [])
        elif line and not line.startswith(" "):
            section = None
        elif section is not None and line.strip():
            new = re.match(r"    ([\w*][\w.*, ]*): (.*)", line)
            if section is sections.get("Returns"):
                section.append(("", line.strip()))
            elif new:
                section.append((new[1], new[2]))
            elif section:
                name, before = section[-1]
                section[-1] = name, f"{before} {line.strip()}"
    return sections


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    for path in tables.pages():
        path.write_text(tables.filled(path.read_text(encoding="utf-8")), "utf-8")
