"""Gigapixel pathology slides, slide-level labels, accelerators."""


def load(run):
    """Opens a trained run: `wsi_jax.load("runs/demo").predict("slide.svs")`.

    Args:
        run: its folder.

    Returns:
        A `wsi_jax.run.Predictor`.
    """
    # Here, because a run needs the readers of slides and `import wsi_jax` must not.
    from wsi_jax.run import load

    return load(run)
