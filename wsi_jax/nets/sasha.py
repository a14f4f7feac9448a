"""The nets of SASHA, as functions of one tree of the parameters of all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num, PyTree

from wsi_jax.nets.hafed import HAFED
from wsi_jax.nets.policy import Actor, Critic, Updater
from wsi_jax.ops.episode import Update
from wsi_jax.types import Zooms


class ZoomNets(NamedTuple):
    """Modules for rows of d features.

    `params` are everywhere a dict of what each has learnt, by its name; "standardise"
    is in it besides, the mean and the deviation [d] of features.
    """

    hafed: HAFED
    updater: Updater
    actor: Actor
    critic: Critic

    def init(self, name: str, key: Key[Array, ""]) -> PyTree:
        """One of them before it has learnt."""
        d = self.hafed.features
        row, rows = jnp.zeros(d), jnp.zeros((1, d))
        seen = {
            "hafed": (jnp.zeros((1, 2, d)), jnp.ones(1, bool)),
            "updater": (row, row, rows),
        }
        return getattr(self, name).init(key, *seen.get(name, (rows,)))

    def standardised(
        self, params: PyTree, x: Num[Array, "*n d"]
    ) -> Float[Array, "*n d"]:
        """Features as the nets meet them."""
        known = jax.lax.stop_gradient(params["standardise"])
        mean, std = (
            known[name].reshape((1,) * (x.ndim - 1) + (-1,)) for name in ("mean", "std")
        )
        return (x.astype(mean.dtype) - mean) / std

    def rows(self, params: PyTree, x: Zooms) -> Zooms:
        """Rows [b n d] at low and at high resolution; of distilled ones, themselves."""
        if is_distilled(x):
            return x
        return Zooms(self.standardised(params, x.low), self.aggregate(params, x.high))

    def aggregate(
        self, params: PyTree, children: Num[Array, "*n k d"]
    ) -> Float[Array, "*n d"]:
        """Rows at high resolution, from features of the children of each tile."""
        x = self.standardised(params, children)
        return self.hafed.apply(params["hafed"], x, method="aggregate")[0]

    def scores(
        self, params: PyTree, x: Float[Array, "*n d"]
    ) -> tuple[Float[Array, "*n m"], Float[Array, "*n c"]]:
        """Of each row what a verdict is made of; see `HAFED.rows`."""
        return self.hafed.apply(params["hafed"], x, method="rows")

    def classify(
        self, params: PyTree, x: Float[Array, "b n d"], mask: Bool[Array, "b n"]
    ) -> tuple[Float[Array, "b c"], Float[Array, "b n"]]:
        """Logits and attention of slides."""

        def one(x, mask):
            said = self.hafed.apply(params["hafed"], x, mask, method="classify")
            return said.logits, said.attention.mean(0)

        return jax.vmap(one)(x, mask)

    def update(self, params: PyTree) -> Update:
        """Of rows once one like them was zoomed into."""
        return Update.of(self.updater, params["updater"])

    def act(self, params: PyTree, x: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        """Logit of zooming into each tile."""
        return self.actor.apply(params["actor"], x)


def is_distilled(x: Zooms) -> bool:
    """Whether high resolution is told by one row for each tile."""
    return x.high.ndim == x.low.ndim
