"""CLAM on bags: verdict, attention, and the loss of slides and of their tiles."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from wsi_jax.nets.attention import AttentionHead
from wsi_jax.ops import pooling
from wsi_jax.ops.weights import Normaliser, normalise


class Clam(NamedTuple):
    """An attention head and how it is trained (Lu et al. 2021).

    Attributes:
        net: one attention (ABMIL, CLAM-SB), or one for each class (CLAM-MB).
        chunk: tiles embedded at a time; a longer bag is pooled exactly.
        instance_weight: share of the clustering loss in the total; 0 for none.
        sampled: tiles clustered from each end of the attention.
        subtyping: whether the classes exclude each other.
        normaliser: how logits of the attention become weights.
    """

    net: AttentionHead
    chunk: int = 16384
    instance_weight: float = 0.0
    sampled: int = 8
    subtyping: bool = False
    normaliser: Normaliser = Normaliser.softmax

    def verdict(
        self, params: PyTree, x: Num[Array, "b n f"], mask: Bool[Array, "b n"], key=None
    ) -> tuple[Float[Array, "b c"], Float[Array, "b n"]]:
        """Logits, and the attention that speaks for the likeliest class.

        Args:
            params: of the net.
            x: features.
            mask: True where there is a tile.
            key: drops out as in training; None for prediction.
        """
        logits, seen = self._attend(params, x, mask, key)
        several = self.net.branches > 1
        branch = logits.argmax(-1) if several else jnp.zeros(len(logits), int)
        seen = jnp.take_along_axis(seen, branch[:, None, None], 1)[:, 0]
        return logits, normalise(seen, mask, self.normaliser)

    def loss(
        self,
        params: PyTree,
        x: Num[Array, "b n f"],
        mask: Bool[Array, "b n"],
        label: Int[Array, " b"],
        key=None,
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        """Cross-entropy of each slide, mixed with the clustering loss; and metrics."""
        key, judge_key = (None, None) if key is None else jax.random.split(key)
        logits, seen = self._attend(params, x, mask, key)
        bag = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        right = {"accuracy": (logits.argmax(-1) == label).astype(jnp.float32)}
        if not self.instance_weight:
            return bag, right
        # A short slide's ends reach into the padding, which may hold anything.
        clean = jnp.where(mask[..., None], x, 0)

        def judge(ids):
            h = self._embed(
                params, jnp.take_along_axis(clean, ids[..., None], 1), judge_key
            )[0]
            return self.net.apply(params, h, method="judge")

        instance = pooling.instance_loss(
            judge, seen, mask, label, n_classes=self.net.n_classes,
            sampled=self.sampled, subtyping=self.subtyping,
        )  # fmt: skip
        w = self.instance_weight
        parts = {"bag_loss": bag, "instance_loss": instance}
        return (1 - w) * bag + w * instance, parts | right

    def _attend(self, params, x, mask, key):
        embed = lambda x, key: self._embed(params, x, key)
        how = {"chunk": self.chunk, "how": self.normaliser}
        seen = pooling.attend(embed, x, mask, key=key, **how)
        return self.net.apply(params, seen.pooled, method="classify"), seen.logits

    def _embed(self, params, x, key):
        rngs = {} if key is None else {"dropout": key}
        return self.net.apply(params, x, key is not None, method="embed", rngs=rngs)
