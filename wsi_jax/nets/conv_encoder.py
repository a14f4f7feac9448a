"""Convolutional encoders of tiles: ResNet and ConvNeXt, with average pooling."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Array, Key, PyTree

from wsi_jax.config_fields import COUNT, SEED
from wsi_jax.nets.convnext import ConvNeXt
from wsi_jax.nets.norm import NormKind, calibrate
from wsi_jax.nets.resnet import ResNet
from wsi_jax.nets.trunk import Trunk
from wsi_jax.types import Bag

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class Depth(enum.Enum):
    """ResNet by its number of layers."""

    resnet18 = 18
    resnet34 = 34
    resnet50 = 50


@dataclasses.dataclass(kw_only=True)
class Encoder(Trunk):
    """A ResNet and global average pooling.

    Without `weights` the trunk is random: a weak baseline. Usual in the CLAM literature
    are `depth=resnet50, stages=3, norm=frozen` and ImageNet weights: 1,024 features.

    Attributes:
        depth: which ResNet.
        stages: number of its four stages; each doubles the stride and the features.
        width: channels after the first convolution; 64 in pretrained weights.
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
    weight_fields: ClassVar[tuple[str, ...]] = ("depth", "width", "norm", "mean", "std")
    shape_fields: ClassVar[tuple[str, ...]] = ("depth", "stages", "width", "norm")

    @property
    def name(self) -> str:
        return self.depth.name

    def trunk(self) -> ResNet:
        """The net without pooling: pixels to maps of features [b y x d].

        Raises:
            ValueError: the number of stages is not 1 to 4.
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

    def ignored_prefixes(self) -> tuple[str, ...]:
        """The classifier, and the stages that a shorter trunk leaves out."""
        return ("fc.", *(f"layer{i}." for i in range(self.stages + 1, 5)))

    def init_calibrated(self, key: Key[Array, ""], batch: Bag | None) -> PyTree:
        """Initial parameters; frozen norms without weights get the batch's moments."""
        params = self.make().init(key)
        if self.norm is NormKind.frozen and not self.weights:
            return calibrate(self.trunk(), params, batch.x)
        return params

    def check(self, name: str) -> None:
        """Refuses missing files of weights, and a frozen norm without weights."""
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
        blocks: number of blocks in each stage.
        width: channels of the first stage; each further stage doubles it.
        stem: kernel size and stride of the first convolution, in pixels.
        scale: initial layer scale of each block; 1e-6 for training on very much data.
    """

    blocks: tuple[int, ...] = (3, 3, 9, 3)
    width: int = 96
    stem: int = 4
    scale: float = 1e-6

    weight_fields: ClassVar[tuple[str, ...]] = ("width", "stem", "mean", "std")
    shape_fields: ClassVar[tuple[str, ...]] = ("blocks", "width", "stem")

    def validate(self) -> None:
        """Raises ValueError for options that describe no net."""
        if not self.blocks or min(*self.blocks, self.width, self.stem) < 1:
            raise ValueError(
                f"a trunk of blocks={self.blocks}, width={self.width}, stem="
                f"{self.stem}: one stage at least, and no number below 1"
            )

    @property
    def name(self) -> str:
        return "convnext"

    def trunk(self) -> ConvNeXt:
        """The net without pooling: pixels to maps of features [b y x d]."""
        return ConvNeXt(
            blocks=tuple(self.blocks),
            width=self.width,
            stem=self.stem,
            scale=self.scale,
            dtype=self.dtype.value,
            mean=self.mean,
            std=self.std,
        )

    def ignored_prefixes(self) -> tuple[str, ...]:
        """The classifier, and the stages that a shorter trunk leaves out."""
        return ("fc.", "head.", *(f"stages.{i}." for i in range(len(self.blocks), 4)))
