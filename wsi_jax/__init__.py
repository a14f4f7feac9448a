"""Gigapixel pathology slides, slide-level labels, accelerators.

    run = wsi_jax.train("quick", manifest="slides.csv")
    run.predict("slide.svs").heatmap("slide.png")

What is here is imported when it is first used: `import wsi_jax` alone loads neither JAX
nor readers of slides.
"""

import importlib
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_jax.api import extract, load, predict, train
    from wsi_jax.methods.mil import ABMIL, CLAM, Max, Mean
    from wsi_jax.run.config import Experiment, Manifest
    from wsi_jax.run.finished_run import Run
    from wsi_jax.run.fit_bags import fit_bags
    from wsi_jax.slides.slide import open_slide
    from wsi_jax.slides.slide_tiles import tile

# Written when the package is built; a checkout that is only on the path has none.
_built = pathlib.Path(__file__).with_name("version.txt")
__version__ = _built.read_text("utf-8").strip() if _built.is_file() else "0.2.0"

__all__ = [
    "ABMIL",
    "CLAM",
    "Experiment",
    "Manifest",
    "Max",
    "Mean",
    "Run",
    "extract",
    "fit_bags",
    "load",
    "open_slide",
    "predict",
    "tile",
    "train",
]

_MODULES = {
    **dict.fromkeys(("extract", "load", "predict", "train"), "wsi_jax.api"),
    **dict.fromkeys(("ABMIL", "CLAM", "Max", "Mean"), "wsi_jax.methods.mil"),
    **dict.fromkeys(("Experiment", "Manifest"), "wsi_jax.run.config"),
    "Run": "wsi_jax.run.finished_run",
    "fit_bags": "wsi_jax.run.fit_bags",
    "open_slide": "wsi_jax.slides.slide",
    "tile": "wsi_jax.slides.slide_tiles",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'wsi_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
