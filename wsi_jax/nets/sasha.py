"""SASHA's nets as functions of one tree of parameters, and their policy in rounds."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num, PyTree

from wsi_jax.nets.hafed import HAFED
from wsi_jax.nets.policy import Actor, Critic, Updater
from wsi_jax.ops import zoom_env
from wsi_jax.ops.episode import RowUpdater
from wsi_jax.ops.sampling import log_attention
from wsi_jax.types import Rounds, TwoLevelFeatures

# Tiles of each slide whose children are read before it is known that they are wanted.
LOOKAHEAD = 2


class ZoomNets(NamedTuple):
    """Modules for rows of d features.

    `params` are everywhere a dict of each module's parameters, by its name, and of
    "standardise": mean and standard deviation [d] of the features.
    """

    hafed: HAFED
    updater: Updater
    actor: Actor
    critic: Critic

    def init(self, name: str, key: Key[Array, ""]) -> PyTree:
        """New parameters of one module."""
        d = self.hafed.features
        row, rows = jnp.zeros(d), jnp.zeros((1, d))
        examples = {
            "hafed": (jnp.zeros((1, 2, d)), jnp.ones(1, bool)),
            "updater": (row, row, rows),
        }
        return getattr(self, name).init(key, *examples.get(name, (rows,)))

    def standardised(
        self, params: PyTree, x: Num[Array, "*n d"]
    ) -> Float[Array, "*n d"]:
        """Features, shifted and scaled as the nets take them."""
        statistics = jax.lax.stop_gradient(params["standardise"])
        mean, std = (
            statistics[name].reshape((1,) * (x.ndim - 1) + (-1,))
            for name in ("mean", "std")
        )
        return (x.astype(mean.dtype) - mean) / std

    def rows(self, params: PyTree, x: TwoLevelFeatures) -> TwoLevelFeatures:
        """Rows [b n d] at low and at high resolution; distilled rows as they are."""
        if is_distilled(x):
            return x
        return TwoLevelFeatures(
            self.standardised(params, x.low), self.aggregate(params, x.high)
        )

    def aggregate(
        self, params: PyTree, children: Num[Array, "*n k d"]
    ) -> Float[Array, "*n d"]:
        """Rows at high resolution, from features of the children of each tile."""
        x = self.standardised(params, children)
        return self.hafed.apply(params["hafed"], x, method="aggregate")[0]

    def row_logits(
        self, params: PyTree, x: Float[Array, "*n d"]
    ) -> tuple[Float[Array, "*n m"], Float[Array, "*n c"]]:
        """Attention log weight and class logits of each row; see `HAFED.row_logits`."""
        return self.hafed.apply(params["hafed"], x, method="row_logits")

    def classify(
        self, params: PyTree, x: Float[Array, "b n d"], mask: Bool[Array, "b n"]
    ) -> tuple[Float[Array, "b c"], Float[Array, "b n"]]:
        """Logits and attention of slides, from the rows of their tiles."""

        def one(x, mask):
            output = self.hafed.apply(params["hafed"], x, mask, method="classify")
            return output.logits, output.attention.mean(0)

        return jax.vmap(one)(x, mask)

    def row_updater(self, params: PyTree) -> RowUpdater:
        """The updater of rows after a zoom into a similar tile."""
        return RowUpdater.from_module(self.updater, params["updater"])

    def act(self, params: PyTree, x: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        """Logit of zooming into each tile."""
        return self.actor.apply(params["actor"], x)


def is_distilled(x: TwoLevelFeatures) -> bool:
    """Whether high resolution is one distilled row for each tile, not its children."""
    return x.high.ndim == x.low.ndim


def policy_rounds(
    nets: Callable[..., ZoomNets], share: float, rules: zoom_env.Rules
) -> Rounds:
    """Prediction step by step, reading the children of a tile only when it is chosen.

    Args:
        nets: (rows [*m d]) -> the nets for such rows.
    """

    def begin(params, low, mask):
        low = nets(low).standardised(params, low)
        steps = zoom_env.horizon(share, mask.sum(-1))
        return jax.vmap(zoom_env.reset)(low, mask, steps)

    def request(params, state):
        left = state.mask & ~state.visited & (state.step < state.horizon)[:, None]
        logits = nets(state.rows).act(params, state.rows)
        log_probs = jax.vmap(log_attention)(logits, left)
        best = jnp.argsort(-log_probs, axis=1, stable=True)[:, : 1 + LOOKAHEAD]
        return best, jnp.take_along_axis(jnp.isfinite(log_probs), best, 1)

    def absorb(params, state, tile, children):
        own = nets(state.rows)
        update = lambda *x: own.updater.apply(params["updater"], *x)
        one = lambda *x: zoom_env.step(*x, update, rules)[0]
        return jax.vmap(one)(state, tile, own.aggregate(params, children))

    def finish(params, state):
        return nets(state.rows).classify(params, state.rows, state.mask)

    return Rounds(begin, request, absorb, finish)
