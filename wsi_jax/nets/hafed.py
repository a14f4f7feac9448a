"""HAFED, SASHA's feature distiller: attention over children, then over tiles.

Of one slide: `n` tiles at low resolution, `k` children of each at high resolution, `m`
branches of an attention, `c` classes; callers vmap over slides. SASHA
(arXiv:2507.05077), as its authors' code has it but for the diversity of branches.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from wsi_jax.nets.attention import GatedAttention, torch_linear, torch_uniform
from wsi_jax.ops.attention_weights import (
    Normaliser,
    diversity,
    log_weights,
    mask_top_k,
    masked_softmax,
)


class HafedOutput(NamedTuple):
    """Prediction of HAFED for one slide.

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
    """Random numbers in [0, 1) that decide which of the top are masked in training."""

    children: Float[Array, "n j top"]
    tiles: Float[Array, "m most"]


class HAFED(nn.Module):
    """Attention over children gives a tile's row, attention over tiles the prediction.

    Attributes:
        branches: number of branches of the attention over children, and over tiles.
        top: number of most attended children, and tiles, of which some are masked in
            training.
        mask_rate: share of those that is masked.
        normaliser: rule by which logits of both attentions become weights; not
            sparsemax, whose weights cannot be computed row by row.
    """

    n_classes: int
    features: int
    branches: tuple[int, int] = (1, 5)
    top: tuple[int, int] = (10, 20)
    mask_rate: float = 0.24
    dtype: DTypeLike | None = None
    normaliser: Normaliser = Normaliser.softmax

    def setup(self):
        d, m, c = self.features, self.branches[1], self.n_classes
        self.over_children, self.over_tiles = (
            GatedAttention(branches, 128, dtype=self.dtype, torch_init=True)
            for branches in self.branches
        )
        self.head = torch_linear(d, c)
        self.branch_kernel = self.param("branch_kernel", torch_uniform(d), (m, d, c))
        self.branch_bias = self.param("branch_bias", torch_uniform(d), (m, c))

    def uniforms(self, key: Key[Array, ""], n: int) -> Uniforms:
        """Random numbers for one training step on a slide of n tiles."""
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

    def row_logits(
        self, x: Float[Array, "*n d"]
    ) -> tuple[Float[Array, "*n m"], Float[Array, "*n c"]]:
        """Attention log weight of each row, and the class logits it would give alone.

        The logits of a slide are the latter, averaged by `mean_attention` of the
        former over its rows.
        """
        return log_weights(self.over_tiles(x), self.normaliser), self.head(x)

    def classify(
        self,
        x: Float[Array, "n d"],
        mask: Bool[Array, " n"],
        uniform: Float[Array, "m most"] | None = None,
    ) -> HafedOutput:
        """Prediction from the rows of a slide's tiles, of whatever resolution."""
        x = jnp.where(mask[:, None], x, 0)
        scores = self.over_tiles(x).T
        mask = jnp.broadcast_to(mask[None], scores.shape)
        attention = self._attention(scores, mask, uniform)
        pooled = attention @ x
        branches = jnp.einsum("md,mdc->mc", pooled, self.branch_kernel)
        logits = self.head(pooled.mean(0))
        return HafedOutput(logits, branches + self.branch_bias, attention)

    def __call__(
        self,
        children: Float[Array, "n k d"],
        mask: Bool[Array, " n"],
        uniforms: Uniforms | None = None,
    ) -> HafedOutput:
        """Prediction from the children of all tiles; with `uniforms` as in training."""
        uniforms = uniforms or Uniforms(None, None)
        children = jnp.where(mask[:, None, None], children, 0)
        x, attention = self.aggregate(children, uniforms.children)
        output = self.classify(x, mask, uniforms.tiles)
        return output._replace(children=attention)

    def _attention(self, scores, mask, uniform):
        if uniform is not None:
            mask = mask_top_k(scores, mask, uniform, self.mask_rate)
        return masked_softmax(log_weights(scores, self.normaliser), mask)


class HafedLosses(NamedTuple):
    """Losses of one slide; their sum is trained.

    Attributes:
        children_alike: similarity of the branches over children.
        tiles_alike: similarity of the branches over tiles.
    """

    slide: Float[Array, ""]
    branches: Float[Array, ""]
    children_alike: Float[Array, ""]
    tiles_alike: Float[Array, ""]


def hafed_losses(
    output: HafedOutput, label: Int[Array, ""], mask: Bool[Array, " n"]
) -> HafedLosses:
    """Cross-entropies of a slide and of its branches, and how alike branches are.

    A single branch is the slide itself: it has no loss of its own.
    """
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    m = len(output.branch_logits)
    branches = cross_entropy(output.branch_logits, jnp.repeat(label, m)).mean()
    alike = jnp.where(mask, diversity(output.children), 0).sum()
    return HafedLosses(
        slide=cross_entropy(output.logits, label),
        branches=branches if m > 1 else jnp.zeros_like(branches),
        children_alike=alike / jnp.maximum(mask.sum(), 1),
        tiles_alike=diversity(output.attention),
    )
