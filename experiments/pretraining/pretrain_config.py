"""Configs of pre-training: an encoder, its training, and where tiles come from."""

import dataclasses

from experiments.pretraining.patch_camelyon import MPP, load_patch_camelyon
from experiments.pretraining.prepared_tiles import load_prepared
from experiments.pretraining.sim_clr import SimCLR
from experiments.pretraining.tile_classifier import TileClassifier
from experiments.pretraining.tile_folder import Part, index_tiles, load_tiles
from experiments.pretraining.tile_sets import TileSets
from wsi_jax.run.run_folder import RunError
from wsi_jax.training.loop import Train


@dataclasses.dataclass(kw_only=True)
class Pretrain:
    """Everything that decides an encoder, but for its tiles.

    Attributes:
        run_dir: folder of the run; "" for runs/<name of the config file>.
        mpp: um/px at which tiles are seen; the encoder is for grids of this `mpp`.
        groups: classes that compete among themselves when metrics of the test tiles
            are computed; () for one group of all. The encoder learns all at once.
        method: encoder and augmentation.
        train: length and settings of the training.
        beside: weights of another pre-training, whose linear probe on the same tiles
            is reported too; "" for none.
    """

    run_dir: str = ""
    mpp: float = 1.0
    groups: tuple[tuple[str, ...], ...] = ()
    method: TileClassifier | SimCLR = dataclasses.field(default_factory=TileClassifier)
    train: Train = dataclasses.field(default_factory=Train)
    beside: str = ""

    def validate(self) -> None:
        """Refuses weights that are not there."""
        self.method.encoder.check("method.encoder")


@dataclasses.dataclass(kw_only=True)
class PretrainFolder(Pretrain):
    """Pre-training on a folder of tiles with an index.csv: file, class, cluster.

    Attributes:
        tiles: the folder.
        part: clusters to use. Encoders for practice cohorts keep to the default.
        classes: classes in the order wanted, others left out; () for all.
        tile_mpp: micrometres per pixel of the tiles. LC25000 has about 1.
        val: share of the clusters that validate.
        val_seed: seed of their draw.
    """

    tiles: str = ""
    part: Part = Part.encoder
    classes: tuple[str, ...] = ()
    tile_mpp: float = 1.0
    val: float = 0.15
    val_seed: int = 0

    def sets(self) -> TileSets:
        """The tiles, parted by cluster."""
        if not self.tiles:
            raise RunError("no tiles; add --config.tiles=FOLDER with an index.csv")
        index = index_tiles(
            self.tiles,
            part=self.part,
            classes=self.classes,
            val=self.val,
            seed=self.val_seed,
            training_ids=self.method.encoder.training_ids(),
        )
        return load_tiles(index, tile_mpp=self.tile_mpp, mpp=self.mpp)


@dataclasses.dataclass(kw_only=True)
class PretrainPatchCamelyon(Pretrain):
    """Pre-training on PatchCamelyon, as TensorFlow Datasets prepares it.

    Attributes:
        data_dir: folder of TensorFlow Datasets; "" for its own choice.
        most: most tiles of each split; None for all, which take 9 GB of memory.
    """

    mpp: float = MPP
    data_dir: str = ""
    most: int | None = None

    def sets(self) -> TileSets:
        """The tiles in PatchCamelyon's own splits."""
        return load_patch_camelyon(self.data_dir or None, mpp=self.mpp, most=self.most)


@dataclasses.dataclass(kw_only=True)
class PretrainPrepared(Pretrain):
    """Pre-training on the tiles that `pretraining.prepare_tiles` has written.

    Attributes:
        tiles: the folder.
        most: most tiles of each split; None for all, which are held in memory.
    """

    tiles: str = ""
    most: int | None = None

    def sets(self) -> TileSets:
        """The tiles in their cohort's splits, each with its slide's label."""
        if not self.tiles:
            raise RunError("no tiles; add --config.tiles=FOLDER, of prepare_tiles")
        return load_prepared(self.tiles, mpp=self.mpp, most=self.most)
