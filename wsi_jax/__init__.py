"""Gigapixel pathology slides, slide-level labels, accelerators."""

__version__ = "0.2.0"


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
