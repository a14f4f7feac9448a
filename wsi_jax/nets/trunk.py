"""Base class of encoders: weights, where they come from, and what they expect."""

import abc
import dataclasses
import enum
import hashlib
import os
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num, PyTree

from wsi_jax.nets import pretrained
from wsi_jax.nets.weights_metadata import WeightsMetadata, read_weights_metadata
from wsi_jax.ops.pooling import map_mean_and_deviation
from wsi_jax.types import Bag, Dtype


class TileEncoder(NamedTuple):
    """An encoder as pure functions, not yet compiled.

    Attributes:
        init: key -> params: the weights of a file, or random ones.
        apply: (params, pixels [b h w 3], 0 to 255) -> features [b d], at least float32.
        dim: d, number of features.
    """

    init: Callable
    apply: Callable
    dim: int


@dataclasses.dataclass(kw_only=True)
class Trunk(abc.ABC):
    """Options of an encoder, from which its net is made.

    Attributes:
        dtype: dtype of convolutions and matmuls.
        weights: a `.safetensors` file with torchvision's or timm's names; "" for random
            weights.
        seed: seed of random weights, for a trunk that is not trained.
        mean: mean of red, green, blue in the pretraining images, where white is 1;
            ImageNet's.
        std: their standard deviation.
        pretrained_on: cohorts that weights of others have learnt from, as "TCGA": a
            report names test slides that seem to be of one.
    """

    dtype: Dtype = Dtype.float32
    weights: str = ""
    seed: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    pretrained_on: tuple[str, ...] = ()

    # Fields that must equal those the weights were trained with. Fields that shapes
    # depend on need no check, and a trunk may have fewer stages than its weights.
    weight_fields: ClassVar[tuple[str, ...]]
    # Fields that the shapes of parameters depend on.
    shape_fields: ClassVar[tuple[str, ...]]

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Short name of the architecture."""

    @abc.abstractmethod
    def trunk(self) -> nn.Module:
        """The net without pooling: pixels to maps of features [b y x d]."""

    @abc.abstractmethod
    def ignored_prefixes(self) -> tuple[str, ...]:
        """Prefixes of names in files of weights that the trunk does not have."""

    def make(self) -> TileEncoder:
        """The encoder as pure functions: trunk and global average pooling."""
        net = self.trunk()

        def apply(params: PyTree, pixels: Num[Array, "b h w 3"]) -> Float[Array, "b d"]:
            cells = net.apply(params, pixels)
            return cells.mean((1, 2), dtype=jnp.promote_types(cells.dtype, jnp.float32))

        return TileEncoder(self.init(net), apply, net.dim)

    def pooled(self, deviation: bool) -> TileEncoder:
        """As `make`; with `deviation`, means and deviations over the trunk's map."""
        made, net = self.make(), self.trunk()
        if not deviation:
            return made
        apply = lambda params, pixels: map_mean_and_deviation(net.apply(params, pixels))
        return TileEncoder(made.init, apply, 2 * net.dim)

    def init(self, net: nn.Module) -> Callable:
        """A function key -> params of the trunk: those of the file, or random ones."""

        def init(key):
            side = 64 // self.multiple_px * self.multiple_px or self.multiple_px
            one = jnp.zeros((1, side, side, 3), jnp.uint8)
            if not self.weights:
                return net.init(key, one)
            self._metadata()
            like = jax.eval_shape(net.init, key, one)["params"]
            try:
                params = pretrained.load(
                    self.weights, like, self.ignored_prefixes(), self.rename
                )
            except pretrained.WeightsError as error:
                own = self.describe()
                fields = ", ".join(f"{name}={own[name]}" for name in self.shape_fields)
                raise pretrained.WeightsError(
                    f"{error}; the encoder has {fields}"
                ) from error
            return {"params": params}

        return init

    def rename(self, name: str) -> tuple[str, int]:
        """Our name for a tensor in a file, and its position where ours packs some."""
        return name, 0

    @property
    def multiple_px(self) -> int:
        """Number of pixels that the sides of tiles must be multiples of."""
        return 1

    def check_tile(self, flag: str, size_px: int) -> None:
        """Refuses a size of tiles that the trunk cannot take; `flag` is its flag."""
        if size_px % self.multiple_px:
            down = size_px // self.multiple_px * self.multiple_px
            sides = " or ".join(map(str, filter(None, (down, down + self.multiple_px))))
            raise ValueError(
                f"--config.{flag}={size_px} does not divide into patches of "
                f"{self.multiple_px} px; make it {sides}"
            )

    def check(self, name: str) -> None:
        """Refuses missing files of weights; `name` is the trunk's in the config."""
        if self.weights and not os.path.isfile(self.weights):
            raise ValueError(f"--config.{name}.weights={self.weights}: no such file")

    def init_calibrated(self, key: Key[Array, ""], batch: Bag | None) -> PyTree:
        """Initial parameters of a trunk that is trained on batches like this one."""
        del batch
        return self.make().init(key)

    def params(self) -> PyTree:
        """Parameters of a frozen encoder: those of the file, or drawn by the seed."""
        return self.make().init(jax.random.key(self.seed))

    def provenance(self) -> str:
        """Source of the parameters: "sha256:..." of a file, or "random:seed"."""
        if not self.weights:
            return f"random:{self.seed}"
        with open(self.weights, "rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"

    def training_ids(self) -> tuple[str, ...]:
        """Clusters, slides and patients that the weights were trained on.

        Raises:
            WeightsError: the weights were made for another encoder than this.
        """
        metadata = self._metadata()
        return metadata.training_ids if metadata else ()

    def trained_mpp(self) -> float | None:
        """um/px of the tiles that the weights were trained on; None if unknown."""
        metadata = self._metadata()
        config = metadata.made.get("config", {}) if metadata else {}
        return config.get("mpp")

    def describe(self) -> dict[str, str]:
        """All options that decide the features, to be stored beside them."""
        plain = dataclasses.asdict(self) | {"weights": self.provenance()}
        named = lambda v: v.name if isinstance(v, enum.Enum) else str(v)
        silent = "seed", "pretrained_on"  # neither changes a feature
        return {n: named(value) for n, value in plain.items() if n not in silent}

    def _metadata(self) -> WeightsMetadata | None:
        """Metadata of the weights; None for random weights and other software's."""
        metadata = read_weights_metadata(self.weights) if self.weights else None
        if metadata is None:
            return None
        # Layer and group norms have the same parameters: no shape would disagree.
        own, theirs = self.describe(), metadata.encoder
        wrong = [name for name in self.weight_fields if theirs.get(name) != own[name]]
        if wrong:
            have = ", ".join(f"{name}={own[name]}" for name in wrong)
            want = ", ".join(f"{name}={theirs.get(name)}" for name in wrong)
            raise pretrained.WeightsError(
                f"{self.weights} was made for an encoder of {want}; this one has {have}"
            )
        return metadata
