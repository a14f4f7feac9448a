"""A tiny vision transformer, and parameters with nothing at its initial value."""

import jax
import jax.numpy as jnp
import numpy as np

TINY = {"width": 8, "depth": 1, "heads": 2, "hidden": 12, "patch": 4, "native_px": 16}


def shapes(encoder):
    return jax.eval_shape(encoder.make().init, jax.random.key(0))["params"]


def drawn(encoder, seed=0):
    """Parameters with nothing at its initial value, drawn without compiling."""
    rng = np.random.default_rng(seed)
    draw = lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype)
    return jax.tree.map(draw, shapes(encoder))
