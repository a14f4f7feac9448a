"""What becomes of crops: their features, the pooled one, the verdict."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from wsi_jax.nets.crop_classifier import CropHead, with_statistics
from wsi_jax.nets.encoder import Encoder
from wsi_jax.nets.trunk import Trunk
from wsi_jax.ops.augment import augment_crops
from wsi_jax.ops.crop_grid import by_chunks
from wsi_jax.ops.attention_weights import posterior
from wsi_jax.types import Bag


@dataclasses.dataclass(kw_only=True)
class CropOptions:
    """What methods have in common that learn from crops, or tiles, end to end.

    Attributes:
        trunk: of the crops; trained from its weights where it has some.
        width: of a crop's feature.
        deviation: pool the trunk's map to mean and deviation, not to its mean alone.
        trunk_rate: the trunk's rate of learning, as a share of the rest's; at 0 it
            stays as its weights are.
        augment: turn and flip crops in training, and restain them.
        stain: most that the log gain of each stain changes by, crop by crop.
        resident: for slides of megapixels, such as BACH's: they lie on the device.
        chunk: crops encoded at a time; None for all. Fewer take less memory and
            encode twice.
    """

    trunk: Trunk = dataclasses.field(default_factory=Encoder)
    width: int = 64
    deviation: bool = False
    trunk_rate: float = 1.0
    augment: bool = True
    stain: float = 0.0
    resident: bool = False
    chunk: int | None = None

    def check_counts(self, *names: str) -> None:
        """Raises ValueError naming the first of some flags that is not 1 or more."""
        for name in (*names, "width"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"--config.method.{name}={value}: 1 or more")

    def check(self, cell_px: int) -> None:
        """Any grid has cells."""

    def trained(self) -> "CropOptions":
        """The method as its checkpoint needs it: without a file of weights."""
        trunk = dataclasses.replace(self.trunk, weights="")
        return dataclasses.replace(self, trunk=trunk)

    def reader(
        self,
        classes: int,
        *,
        trunk: Trunk | None = None,
        magnifications: int = 1,
        tells: bool = False,
        unit: bool = False,
        gated: int = 0,
        branches: int = 1,
        centred: bool = False,
    ) -> "CropClassifier":
        """Trunk and head.

        Args:
            classes: to be told apart.
            trunk: another one than the method's.
            magnifications, tells, unit, gated, branches: as `CropHead` has them.
            centred: as `CropClassifier` has it.
        """
        trunk = trunk or self.trunk
        head = CropHead(
            classes, magnifications, self.width, tells, unit, gated, branches,
            dtype=trunk.dtype.value,
        )  # fmt: skip
        learns = self.trunk_rate > 0
        return CropClassifier(trunk, head, self.deviation, self.chunk, learns, centred)

    def augmented(
        self, key: Array, crops: Num[Array, "b n s s 3"]
    ) -> Num[Array, "b n s s 3"]:
        """Crops as training sees them."""
        return augment_crops(key, crops, stain=self.stain) if self.augment else crops


class CropClassifier:
    """Trunk and head of a method that judges slides by crops, as pure functions.

    Parameters are {"trunk": ..., "head": ...}; whatever else there is is left alone.

    Args:
        trunk: of the crops; trained from its weights where it has some.
        head: what becomes of a crop's features.
        deviation: pool the trunk's map to mean and deviation, not to its mean alone.
        chunk: crops encoded at a time; None for all.
        learns: whether the trunk has a gradient, which is most of the work.
        centred: features are told from the mean of the slide's crops of the same
            magnification, which hides what all of a slide has, such as its stain.
    """

    def __init__(
        self,
        trunk: Trunk,
        head: CropHead,
        deviation: bool,
        chunk: int | None,
        learns: bool = True,
        centred: bool = False,
    ):
        self.trunk, self.head, self.chunk = trunk, head, chunk
        self.learns, self.centred = learns, centred
        net = trunk.pooled(deviation)
        self.apply, self.dim = net.apply, net.dim

    def init(self, key: Array) -> PyTree:
        """New parameters; `begin` tells them what crops are like."""
        keys = jax.random.split(key)
        one = jnp.zeros((1, self.dim)), jnp.zeros(1, jnp.int32)
        trunk = self.trunk.make().init(keys[0])
        return {"trunk": trunk, "head": self.head.init(keys[1], *one)}

    def begin(
        self,
        key: Array,
        params: PyTree,
        crops: Num[Array, "b n s s 3"],
        which: Int[Array, "b n"],
        mask: Bool[Array, "b n"],
    ) -> PyTree:
        """Parameters with the trunk's weights and the statistics of some crops."""
        # What was not read is like anything, here like the first crop.
        crops = jnp.where(mask[..., None, None, None], crops, crops[:1, :1])
        flat = Bag(crops.reshape(-1, *crops.shape[2:]), None, None, None)
        params = params | {"trunk": self.trunk.begin(key, flat)}
        x = self._features(params, crops, which, mask)
        return params | {"head": with_statistics(params["head"], x, which, mask)}

    def encode(
        self, params: PyTree, crops: Num[Array, "b n s s 3"]
    ) -> Float[Array, "b n f"]:
        """The trunk's features of crops."""
        trunk = params["trunk"]
        trunk = trunk if self.learns else lax.stop_gradient(trunk)
        return by_chunks(lambda pixels: self.apply(trunk, pixels), crops, self.chunk)

    def embed(
        self,
        params: PyTree,
        crops: Num[Array, "b n s s 3"],
        which: Int[Array, "b n"],
        mask: Bool[Array, "b n"],
    ) -> Float[Array, "b n d"]:
        """The head's features of crops of some magnifications, where there are some."""
        x = self._features(params, crops, which, mask)
        return self.head.apply(params["head"], x, which, method="embed")

    def _features(self, params, crops, which, mask):
        x = self.encode(params, crops)
        if not self.centred:
            return x
        mine = jax.nn.one_hot(which, self.head.magnifications, dtype=x.dtype)
        mine *= mask[..., None]
        count = jnp.maximum(mine.sum(1), 1)[..., None]
        mean = jnp.einsum("bnm,bnf->bmf", mine, x) / count
        return x - jnp.einsum("bnm,bmf->bnf", mine, mean)

    def attend(self, params: PyTree, h: Float[Array, "b n d"]) -> Float[Array, "b m n"]:
        """Logits of each attention on crops, by their features."""
        return jnp.moveaxis(self.head.apply(params["head"], h, method="attend"), -1, 1)

    def reweigh(
        self, params: PyTree, weights: Float[Array, "b n"], h: Float[Array, "b n d"]
    ) -> Float[Array, "b m n"]:
        """Weights times exp(attention on what crops show), scaled to a sum of 1.

        Without that attention they are only scaled. Zeros where nothing weighs.
        """
        prior = weights[:, None]
        if not self.head.gated:
            return posterior(prior, jnp.zeros_like(prior))
        logits = self.attend(params, h)
        return posterior(jnp.broadcast_to(prior, logits.shape), logits)

    def classify(
        self, params: PyTree, weights: Float[Array, "b m n"], h: Float[Array, "b n d"]
    ) -> Float[Array, "b c"]:
        """Logits of slides, of their crops' features and weights in each attention."""
        pooled = jnp.einsum("bmn,bnd->bmd", weights, h).reshape(len(h), -1)
        return self.head.apply(params["head"], pooled, method="classify")
