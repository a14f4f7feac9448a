"""Pooling of a few selected tiles into a slide, by their attention or maximum."""

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, PyTree

from wsi_jax.config_fields import COUNT, POSITIVE, FieldError
from wsi_jax.nets.crop_classifier import CropClassifier
from wsi_jax.nets.crop_options import HeadConfig
from wsi_jax.ops.attention_weights import Normaliser, normalise


class Pooling(enum.Enum):
    """How the features of selected tiles become the slide's.

    attention: their sum, weighted by normalised gated attention.
    max: the greatest value of each; a tile's attention is the share that it gave.
    """

    attention = "attention"
    max = "max"


@dataclasses.dataclass(kw_only=True)
class PoolingHead(HeadConfig):
    """Embedding of tiles, and how it is pooled.

    Attributes:
        pooling: how features of tiles become the slide's.
        normaliser: normaliser of the attention.
        power: exponent of its logits, where it is a squared average: 2, or another.
    """

    width: int = 128
    attention_width: int = 64
    pooling: Pooling = Pooling.attention
    normaliser: Normaliser = Normaliser.squared_average
    power: float = 2.0

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **HeadConfig.bounds,
        **{"attention_width": COUNT, "power": (POSITIVE, math.inf)},
    }

    def validate(self) -> None:
        """Refuses several branches of a maximum."""
        super().validate()
        if self.pooling is Pooling.max and self.branches > 1:
            raise FieldError("branches", "pooling by the maximum has one")


def classify_tiles(
    net: CropClassifier,
    params: PyTree,
    tiles: Num[Array, "b n s s 3"],
    mask: Bool[Array, "b n"],
    normaliser: Normaliser,
    power: float = 2.0,
    pooling: Pooling = Pooling.attention,
) -> tuple[Float[Array, "b c"], Float[Array, "b n"]]:
    """Logits of slides, and the attention on their tiles, the mean of all branches."""
    h = net.embed(params, tiles, jnp.zeros(mask.shape, jnp.int32), mask)
    if pooling is Pooling.max:
        return net.classify_max(params, h, mask)
    logits = net.attention_logits(params, h)
    attention = normalise(logits, mask[:, None], normaliser, power)
    return net.classify(params, attention, h), attention.mean(1)
