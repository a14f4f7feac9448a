"""HAFED: features of a slide distilled by two attentions, one over the other.

Of one slide: `n` tiles at low resolution, `k` children of each at high resolution, `m`
branches of an attention, `c` classes. Callers vmap over slides. SASHA (NeurIPS 2025,
arXiv:2507.05077), as the authors' code has it but for the diversity of branches.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from wsi_jax.nets.gated import Gated, linear, uniform
from wsi_jax.ops.multi_branch_attention import diversity, drop_best, mean_attention
from wsi_jax.ops.pooling import masked_softmax
from wsi_jax.ops.weights import Normaliser, log_weights


class Verdict(NamedTuple):
    """Of a slide.

    Attributes:
        logits: [c], by the mean of the branches.
        branch_logits: [m c], by each.
        attention: [m n], over tiles.
        children: [n j k], over the children of each tile, by j branches; or None.
    """

    logits: Float[Array, " c"]
    branch_logits: Float[Array, "m c"]
    attention: Float[Array, "m n"]
    children: Float[Array, "n j k"] | None = None


class Uniforms(NamedTuple):
    """Numbers in [0, 1) that decide which of the best are masked in training."""

    children: Float[Array, "n j top"]
    tiles: Float[Array, "m most"]


class HAFED(nn.Module):
    """Attention over children makes a tile's row, attention over tiles the verdict.

    Rows are sums of features, at low and high resolution alike: what classifies the one
    classifies the other.

    Attributes:
        n_classes: c.
        features: d.
        branches: of the attention over children, and of that over tiles.
        top: the best children, and tiles, of which some are masked in training.
        drop: share of them that is masked.
        dtype: of the matmuls.
        normaliser: how logits of both attentions become weights; not sparsemax, whose
            weights cannot be told row by row.
    """

    n_classes: int
    features: int
    branches: tuple[int, int] = (1, 5)
    top: tuple[int, int] = (10, 20)
    drop: float = 0.24
    dtype: DTypeLike | None = None
    normaliser: Normaliser = Normaliser.softmax

    def setup(self):
        d, m, c = self.features, self.branches[1], self.n_classes
        self.over_children, self.over_tiles = (
            Gated(d, branches, dtype=self.dtype) for branches in self.branches
        )
        self.head = linear(d, c)
        self.branch_kernel = self.param("branch_kernel", uniform(d), (m, d, c))
        self.branch_bias = self.param("branch_bias", uniform(d), (m, c))

    def uniforms(self, key: Key[Array, ""], n: int) -> Uniforms:
        """For one step of training on a slide of n tiles."""
        keys = jax.random.split(key)
        shapes = (n, self.branches[0], self.top[0]), (self.branches[1], self.top[1])
        return Uniforms(*map(jax.random.uniform, keys, shapes))

    def aggregate(
        self,
        children: Float[Array, "*n k d"],
        uniform: Float[Array, "*n j top"] | None = None,
    ) -> tuple[Float[Array, "*n d"], Float[Array, "*n j k"]]:
        """Row of each tile from its children, and the attention over them."""
        scores = jnp.swapaxes(self.over_children(children), -1, -2)
        mask = jnp.ones_like(scores, bool)
        attention = self._attention(scores, mask, uniform)
        rows = jnp.einsum("...k,...kd->...d", attention.mean(-2), children)
        return rows, attention

    def rows(
        self, x: Float[Array, "*n d"]
    ) -> tuple[Float[Array, "*n m"], Float[Array, "*n c"]]:
        """Of each row its log weight in the attentions, and its share in the logits.

        The softmax of the former over any rows is the attention over these.
        """
        return log_weights(self.over_tiles(x), self.normaliser), self.head(x)

    def classify(
        self,
        x: Float[Array, "n d"],
        mask: Bool[Array, " n"],
        uniform: Float[Array, "m most"] | None = None,
    ) -> Verdict:
        """Verdict on a slide from the rows of its tiles, of whatever resolution."""
        x = jnp.where(mask[:, None], x, 0)
        scores = self.over_tiles(x).T
        mask = jnp.broadcast_to(mask[None], scores.shape)
        attention = self._attention(scores, mask, uniform)
        pooled = attention @ x
        branches = jnp.einsum("md,mdc->mc", pooled, self.branch_kernel)
        logits = self.head(pooled.mean(0))
        return Verdict(logits, branches + self.branch_bias, attention)

    def __call__(
        self,
        children: Float[Array, "n k d"],
        mask: Bool[Array, " n"],
        uniforms: Uniforms | None = None,
    ) -> Verdict:
        """Verdict from the children of every tile; with `uniforms` as in training."""
        uniforms = uniforms or Uniforms(None, None)
        children = jnp.where(mask[:, None, None], children, 0)
        x, attention = self.aggregate(children, uniforms.children)
        verdict = self.classify(x, mask, uniforms.tiles)
        return verdict._replace(children=attention)

    def _attention(self, scores, mask, uniform):
        if uniform is not None:
            mask = drop_best(scores, mask, uniform, self.drop)
        return masked_softmax(log_weights(scores, self.normaliser), mask)


def from_rows(
    scores: Float[Array, "n m"],
    projected: Float[Array, "n c"],
    mask: Bool[Array, " n"],
) -> Float[Array, " c"]:
    """Logits of a slide from what `HAFED.rows` gives: those of `HAFED.classify`."""
    return mean_attention(scores, mask) @ projected


class Losses(NamedTuple):
    """Of a slide; trained is their sum."""

    slide: Float[Array, ""]
    branches: Float[Array, ""]
    children_alike: Float[Array, ""]
    tiles_alike: Float[Array, ""]


def losses(verdict: Verdict, label: Int[Array, ""], mask: Bool[Array, " n"]) -> Losses:
    """Cross-entropies of the slide and of its branches, and how alike branches are.

    A single branch is the slide itself: it has no loss of its own.
    """
    surprise = optax.softmax_cross_entropy_with_integer_labels
    m = len(verdict.branch_logits)
    branches = surprise(verdict.branch_logits, jnp.repeat(label, m)).mean()
    alike = jnp.where(mask, diversity(verdict.children), 0).sum()
    return Losses(
        slide=surprise(verdict.logits, label),
        branches=branches if m > 1 else jnp.zeros_like(branches),
        children_alike=alike / jnp.maximum(mask.sum(), 1),
        tiles_alike=diversity(verdict.attention),
    )
