"""Encoders: a trunk and its pooling to one vector per tile."""

import dataclasses
import enum
import hashlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PyTree

from wsi_jax.nets import pretrained
from wsi_jax.nets.norm import NormKind
from wsi_jax.nets.origin import Origin, read_origin
from wsi_jax.nets.resnet import ResNet
from wsi_jax.types import Dtype

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
# What weights are of no use without. A trunk may stop before theirs; shapes tell.
_BINDING = ("depth", "width", "norm", "mean", "std")


class Depth(enum.Enum):
    """Layers with weights in the whole ResNet."""

    resnet18 = 18
    resnet34 = 34
    resnet50 = 50


class TileEncoder(NamedTuple):
    """An encoder as pure functions, not yet compiled.

    Attributes:
        init: key -> params: the weights of the file, or random ones drawn with the key.
        apply: (params, grey levels [b h w 3]) -> features [b d], at least float32.
        dim: d.
    """

    init: Callable
    apply: Callable
    dim: int


@dataclasses.dataclass(kw_only=True)
class Encoder:
    """A ResNet and global average pooling.

    Without `weights` the trunk is random: a real but weak baseline, whose features keep
    colour and texture and know nothing of tissue. The features usual in the CLAM
    literature are `depth=resnet50, stages=3, norm=frozen` with ImageNet weights:
    1,024 numbers for each tile.

    Attributes:
        depth: which ResNet.
        stages: of its four, how many; each doubles the stride and the features.
        width: channels after the first convolution; pretrained weights have 64.
        norm: frozen for weights trained with BatchNorm; layer for random ones, whose
            features would grow with depth otherwise.
        dtype: of the convolutions.
        weights: a `.safetensors` file with torchvision's or timm's names; or "".
        seed: of random weights.
        mean: of red, green, blue in the pretraining images, ImageNet's; white is 1.
        std: their standard deviation.
    """

    depth: Depth = Depth.resnet18
    stages: int = 4
    width: int = 64
    norm: NormKind = NormKind.layer
    dtype: Dtype = Dtype.float32
    weights: str = ""
    seed: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def make(self) -> TileEncoder:
        """The encoder's pure functions.

        Raises:
            ValueError: there is no such number of stages.
        """
        net = self.trunk()

        def init(key):
            one = jnp.zeros((1, 32, 32, 3), jnp.uint8)
            if not self.weights:
                return net.init(key, one)
            self._origin()
            like = jax.eval_shape(net.init, key, one)["params"]
            # The classifier, and the stages that a shorter trunk leaves out.
            later = tuple(f"layer{i}." for i in range(self.stages + 1, 5))
            try:
                return {"params": pretrained.load(self.weights, like, ("fc.", *later))}
            except pretrained.WeightsError as error:
                raise pretrained.WeightsError(
                    f"{error}; the encoder has depth={self.depth.name}, "
                    f"stages={self.stages}, width={self.width}, norm={self.norm.name}"
                ) from error

        def apply(params: PyTree, pixels: Num[Array, "b h w 3"]) -> Float[Array, "b d"]:
            cells = net.apply(params, pixels)
            return cells.mean((1, 2), dtype=jnp.promote_types(cells.dtype, jnp.float32))

        return TileEncoder(init, apply, net.dim)

    def trunk(self) -> ResNet:
        """The trunk alone, for maps of features [b y x d]."""
        if not 1 <= self.stages <= 4:
            raise ValueError(f"stages is {self.stages}; a ResNet has 1 to 4")
        return ResNet(
            blocks=_BLOCKS[self.depth.value][: self.stages],
            bottleneck=self.depth is Depth.resnet50,
            width=self.width,
            norm=self.norm,
            dtype=self.dtype.value,
            mean=self.mean,
            std=self.std,
        )

    def params(self) -> PyTree:
        """The parameters of a frozen encoder: those of the file, or of the seed."""
        return self.make().init(jax.random.key(self.seed))

    def provenance(self) -> str:
        """Where the parameters come from: "sha256:..." of a file, or "random:seed"."""
        if not self.weights:
            return f"random:{self.seed}"
        with open(self.weights, "rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"

    def seen(self) -> tuple[str, ...]:
        """Clusters, slides and patients that the weights say they have learnt from.

        Raises:
            WeightsError: the weights were made for another encoder than this.
        """
        origin = self._origin()
        return origin.seen if origin else ()

    def trained_mpp(self) -> float | None:
        """um/px of the tiles that the weights have learnt from; None where unknown."""
        origin = self._origin()
        config = origin.made.get("config", {}) if origin else {}
        return config.get("mpp")

    def describe(self) -> dict[str, str]:
        """All that decides the features, to be stored beside them."""
        plain = dataclasses.asdict(self) | {
            "depth": self.depth.name,
            "norm": self.norm.value,
            "dtype": self.dtype.value,
            "weights": self.provenance(),
        }
        return {name: str(value) for name, value in plain.items() if name != "seed"}

    def _origin(self) -> Origin | None:
        """Of the weights; None of random ones and of those made elsewhere."""
        origin = read_origin(self.weights) if self.weights else None
        if origin is None:
            return None
        # Layer and group norms have the same parameters: no shape would disagree.
        here = self.describe()
        wrong = [name for name in _BINDING if origin.encoder[name] != here[name]]
        if wrong:
            have = ", ".join(f"{name}={here[name]}" for name in wrong)
            want = ", ".join(f"{name}={origin.encoder[name]}" for name in wrong)
            raise pretrained.WeightsError(
                f"{self.weights} was made for an encoder of {want}; this one has {have}"
            )
        return origin
