"""A method of stages in seconds: gathers children, guesses their features, looks.

Its first stage distils slides for the later ones. A baseline, `rival`, is trained
before the last stage, which may begin with it. As `tiny.py` in all else.
"""

import dataclasses
import pathlib
import runpy
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from wsi_jax.ops.attention_weights import masked_softmax
from wsi_jax.slides.grid import Grid
from wsi_jax.training.supervised import supervised
from wsi_jax.types import Prediction, Stage, Takes

TINY = pathlib.Path(__file__).with_name("tiny.py")


ROOMS = "gather", "judge", "guess", "look"


@dataclasses.dataclass(kw_only=True)
class Toy:
    """Children are averaged by an attention, and tiles by another.

    Attributes:
        children: children along a side of a tile.
        guess_steps: steps of the second stage.
        guess_batch: batch of the second stage.
        rate: learning rate.
        leads: whether the last stage begins with the baseline.
    """

    children: int = 2
    guess_steps: int = 12
    guess_batch: int = 16
    rate: float = 1e-2
    leads: bool = False

    takes: ClassVar[Takes] = Takes.two_levels
    strategy: ClassVar[str] = "look"
    strategies_note: ClassVar[str] = "Who looked"

    def trained(self):
        return self

    def stages(self, task, tx):
        del tx
        named = lambda *names: lambda key, bag: _fresh(names, bag, len(task.classes))
        make = lambda loss, *names: supervised(
            named(*names), loss, _predict, optax.adam(self.rate)
        )
        return (
            Stage("gather", make(_class_loss, "gather", "judge"), distil=_distil),
            Stage(
                "guess",
                make(_guess_loss, "gather", "judge", "guess"),
                overrides={
                    "steps": self.guess_steps,
                    "batch": self.guess_batch,
                    "monitor": "-loss",
                },
                validate=lambda params, bag, key: {"loss": _miss(params, bag)},
            ),
            Stage(
                "rival", make(_look_loss, *ROOMS), baseline=True, inherited=self.leads
            ),
            Stage("look", make(_look_loss, *ROOMS)),
        )


def _fresh(names, bag, c):
    d = bag.x.low.shape[-1]
    shapes = {"gather": (d,), "judge": (d, c), "guess": (d, d), "look": (d,)}
    return {name: {"kernel": jnp.full(shapes[name], 1e-2)} for name in names}


def _distil(params, x):
    """The attention-weighted mean of each tile's children, float32."""
    high = x.high.astype(jnp.float32)
    weight = jax.nn.softmax(high @ params["gather"]["kernel"], -1)
    return x._replace(high=jnp.einsum("bnk,bnkd->bnd", weight, high))


def _rows(params, x):
    return (x if x.high.ndim == 3 else _distil(params, x)).high


def _attention(params, bag):
    logits = jnp.zeros(bag.mask.shape)
    if "look" in params:
        logits = bag.x.low.astype(jnp.float32) @ params["look"]["kernel"]
    return masked_softmax(logits, bag.mask)


def _logits(params, bag):
    pooled = jnp.einsum("bn,bnd->bd", _attention(params, bag), _rows(params, bag.x))
    return pooled @ params["judge"]["kernel"]


def _class_loss(params, bag, key):
    del key
    logits = _logits(params, bag)
    return optax.softmax_cross_entropy_with_integer_labels(logits, bag.target), {}


def _miss(params, bag):
    """[b], squared error of the features guessed from low resolution."""
    guess = bag.x.low.astype(jnp.float32) @ params["guess"]["kernel"]
    far = ((guess - _rows(params, bag.x)) ** 2).mean(-1)
    return (far * bag.mask).sum(-1) / jnp.maximum(bag.mask.sum(-1), 1)


def _guess_loss(params, bag, key):
    del key
    return _miss(_only("guess", params), bag), {}


def _look_loss(params, bag, key):
    return _class_loss(_only("look", params), bag, key)


def _only(name, params):
    """The parameters, of which one alone is learnt."""
    still = jax.lax.stop_gradient
    return {n: p if n == name else still(p) for n, p in params.items()}


def _predict(params, bag, key):
    del key
    tiles = bag.mask.sum(-1)
    counts = {"tiles": tiles, "flops": tiles.astype(jnp.float32)}
    return Prediction(_logits(params, bag), _attention(params, bag), counts)


def get_config():
    config = runpy.run_path(str(TINY))["get_config"]()
    config.method = Toy()
    config.grid = Grid(mpp=4.0, size_px=16, min_tissue=0.5)
    return config
