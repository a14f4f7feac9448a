"""Options of methods that learn to classify slides by crops, or tiles, end to end."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Array, Num

from wsi_jax.config_fields import COUNT, FieldError
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.nets.crop_classifier import CropClassifier, CropMILHead
from wsi_jax.nets.trunk import Trunk
from wsi_jax.ops.augment import augment_crops
from wsi_jax.ops.crop_grid import CropGrid
from wsi_jax.types import Takes


@dataclasses.dataclass(kw_only=True)
class CropAugmentation:
    """Augmentation of training crops.

    Attributes:
        enabled: whether crops are rotated, flipped and stained differently.
        stain: greatest change of the log gain of each stain, drawn for each crop.
    """

    enabled: bool = True
    stain: float = 0.0


@dataclasses.dataclass(kw_only=True)
class HeadConfig:
    """Embedding of crops, attention over them, and classifier.

    Attributes:
        width: width of a crop's embedding.
        deviation: pool the trunk's map to mean and deviation, not to its mean alone.
        attention_width: hidden width of a gated attention over the crops; 0 for none.
        branches: number of such attentions; the classifier gets what each of them
            pools. A single one may settle on uninformative crops.
        centred: whether the mean over the slide's crops of the same magnification is
            subtracted from features, which hides what a slide shares, such as stain.
        unit_length: whether embeddings have length 1, which hides how much a crop
            shows.
        by_magnification: whether each magnification has channels of its own in the
            embedding.
    """

    width: int = 64
    deviation: bool = False
    attention_width: int = 0
    branches: int = 1
    centred: bool = False
    unit_length: bool = False
    by_magnification: bool = False

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(
        ("width", "branches"), COUNT
    )

    def validate(self) -> None:
        """Refuses branches of an attention that there is not."""
        if self.branches > 1 and not self.attention_width:
            raise FieldError(
                "branches",
                "there is no attention over crops; set attention_width beside it to "
                "its width, such as 64, or take 1",
            )


@dataclasses.dataclass(kw_only=True)
class CropOptions:
    """Options that methods share that learn from crops, or tiles, end to end.

    Attributes:
        trunk: trunk of the crops; trained from its weights where it has some.
        trunk_rate: the trunk's learning rate, as a share of the rest's; at 0 it stays
            as its weights are.
        head: embedding, attention and classifier.
        augment: augmentation of training crops.
        resident: whether slides lie on the device, for slides of megapixels, such as
            BACH's.
        chunk: crops encoded at a time; None for all. Fewer take less memory and
            encode twice.
    """

    trunk: Trunk = dataclasses.field(default_factory=Encoder)
    trunk_rate: float = 1.0
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    augment: CropAugmentation = dataclasses.field(default_factory=CropAugmentation)
    resident: bool = False
    chunk: int | None = None

    def check(self, cell_px: int) -> None:
        """Any grid has cells."""

    def trained(self) -> "CropOptions":
        """The method as its checkpoint needs it: without a file of weights."""
        trunk = dataclasses.replace(self.trunk, weights="")
        return dataclasses.replace(self, trunk=trunk)

    def classifier(
        self,
        classes: int,
        *,
        magnifications: int = 1,
        trunk: Trunk | None = None,
        head: HeadConfig | None = None,
    ) -> CropClassifier:
        """Trunk and head.

        Args:
            trunk: a trunk other than the method's.
            head: a head other than the method's.
        """
        trunk, head = trunk or self.trunk, head or self.head
        net = CropMILHead(classes, head, magnifications, trunk.dtype.value)
        return CropClassifier(trunk, net, self.chunk, self.trunk_rate > 0)

    def augmented(
        self, keys: Array, crops: Num[Array, "b n s s 3"]
    ) -> Num[Array, "b n s s 3"]:
        """Crops for a training step; keys: of each slide [b]."""
        if not self.augment.enabled:
            return crops
        return augment_crops(keys, crops, stain=self.augment.stain)


@dataclasses.dataclass(kw_only=True)
class TileOptions(CropOptions):
    """Options of methods that read every tile of a slide.

    Tiles are the cells of the run's grid, read at `mpp`; a grid of tiles that abut has
    `grid.mpp * grid.size_px == mpp * tile_px`.

    Attributes:
        mpp: um/px of the tiles.
        tile_px: side of a tile.
    """

    mpp: float = 0.5
    tile_px: int = 224

    takes: ClassVar[Takes] = Takes.crops
    overviews: ClassVar[bool] = False
    all_tiles: ClassVar[bool] = True
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(
        ("tile_px", "chunk"), COUNT
    )

    def reads(self) -> tuple[float, ...]:
        """um/px at which slides are read besides the overview."""
        return (self.mpp,)

    def cells(self, mpp: float, cell_px: int) -> CropGrid:
        """The cells of overviews at `mpp`, of `cell_px`."""
        return CropGrid((self.mpp,), self.tile_px, mpp * cell_px, (1,))
