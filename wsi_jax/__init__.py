"""Gigapixel pathology slides, slide-level labels, accelerators."""

import pathlib as _pathlib

# Written when the package is built; a checkout that is only on the path has none.
_built = _pathlib.Path(__file__).with_name("version.txt")
__version__ = _built.read_text("utf-8").strip() if _built.is_file() else "0.2.0"


def load(run, *, refuse_unfamiliar_stains=False):
    """Opens a trained run: `wsi_jax.load("runs/demo").predict("slide.svs")`.

    Args:
        run: its folder.
        refuse_unfamiliar_stains: refuse a slide that is stained like none that the run
            has learnt from (fluorescence, say); otherwise its prediction has a note.

    Returns:
        A `wsi_jax.run.predictor.Predictor`.
    """
    # Here, because a run needs the readers of slides and `import wsi_jax` must not.
    from wsi_jax.run.predictor import load

    return load(run, refuse_unfamiliar_stains=refuse_unfamiliar_stains)
