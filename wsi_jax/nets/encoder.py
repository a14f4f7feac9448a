"""Convolutional encoders: a trunk and its pooling to one vector per tile."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Array, Key, PyTree

from wsi_jax.config_io import COUNT, SEED
from wsi_jax.nets.convnext import ConvNeXt
from wsi_jax.nets.norm import NormKind, calibrate
from wsi_jax.nets.resnet import ResNet
from wsi_jax.nets.trunk import Trunk
from wsi_jax.types import Bag

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class Depth(enum.Enum):
    """Layers with weights in the whole ResNet."""

    resnet18 = 18
    resnet34 = 34
    resnet50 = 50


@dataclasses.dataclass(kw_only=True)
class Encoder(Trunk):
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
    """

    depth: Depth = Depth.resnet18
    stages: int = 4
    width: int = 64
    norm: NormKind = NormKind.layer

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "stages": (1, 4),
        "width": COUNT,
        "seed": SEED,
    }
    binding: ClassVar[tuple[str, ...]] = ("depth", "width", "norm", "mean", "std")
    shaping: ClassVar[tuple[str, ...]] = ("depth", "stages", "width", "norm")

    @property
    def name(self) -> str:
        return self.depth.name

    def trunk(self) -> ResNet:
        """The trunk alone, for maps of features [b y x d].

        Raises:
            ValueError: there is no such number of stages.
        """
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

    def beyond(self) -> tuple[str, ...]:
        """The classifier, and the stages that a shorter trunk leaves out."""
        return ("fc.", *(f"layer{i}." for i in range(self.stages + 1, 5)))

    def begin(self, key: Key[Array, ""], batch: Bag | None) -> PyTree:
        """Frozen norms without weights take their statistics from the batch."""
        params = self.make().init(key)
        if self.norm is NormKind.frozen and not self.weights:
            return calibrate(self.trunk(), params, batch.x)
        return params

    def check(self, name: str) -> None:
        """Refuses a frozen norm without weights, too."""
        if not self.weights and self.norm is NormKind.frozen:
            raise ValueError(
                f"--config.{name}.norm=frozen takes its statistics from weights: add "
                f"--config.{name}.weights=FILE.safetensors, or set norm=layer for a "
                "random encoder"
            )
        super().check(name)


@dataclasses.dataclass(kw_only=True)
class ConvNeXtEncoder(Trunk):
    """A ConvNeXt (Liu et al. 2022) and global average pooling.

    Attributes:
        blocks: in each stage, one number for each stage wanted.
        width: channels of the first stage; each further stage doubles it.
        stem: side of the squares that the first convolution cuts the image into, px.
        scale: of each block's branch at first; 1e-6 when trained on very much.
    """

    blocks: tuple[int, ...] = (3, 3, 9, 3)
    width: int = 96
    stem: int = 4
    scale: float = 1e-6

    binding: ClassVar[tuple[str, ...]] = ("width", "stem", "mean", "std")
    shaping: ClassVar[tuple[str, ...]] = ("blocks", "width", "stem")

    def validate(self) -> None:
        """Raises ValueError for a trunk that cannot be."""
        if not self.blocks or min(*self.blocks, self.width, self.stem) < 1:
            raise ValueError(
                f"a trunk of blocks={self.blocks}, width={self.width}, stem="
                f"{self.stem}: one stage at least, and no number below 1"
            )

    @property
    def name(self) -> str:
        return "convnext"

    def trunk(self) -> ConvNeXt:
        """The trunk alone, for maps of features [b y x d]."""
        return ConvNeXt(
            blocks=tuple(self.blocks),
            width=self.width,
            stem=self.stem,
            scale=self.scale,
            dtype=self.dtype.value,
            mean=self.mean,
            std=self.std,
        )

    def beyond(self) -> tuple[str, ...]:
        """The classifier, and the stages that a shorter trunk leaves out."""
        return ("fc.", "head.", *(f"stages.{i}." for i in range(len(self.blocks), 4)))
