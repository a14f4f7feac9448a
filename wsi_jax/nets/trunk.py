"""What every encoder has: weights, where they come from, and what made them."""

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
from wsi_jax.nets.weights_metadata import Origin, read_origin
from wsi_jax.ops.pooling import mean_and_deviation
from wsi_jax.types import Bag, Dtype


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
class Trunk(abc.ABC):
    """What every trunk with weights has.

    Attributes:
        dtype: of the convolutions.
        weights: a `.safetensors` file with torchvision's or timm's names; or "".
        seed: of random weights, for a trunk that is not trained.
        mean: of red, green, blue in the pretraining images, ImageNet's; white is 1.
        std: their standard deviation.
    """

    dtype: Dtype = Dtype.float32
    weights: str = ""
    seed: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    # What weights are of no use without. A trunk may stop before theirs; shapes tell.
    binding: ClassVar[tuple[str, ...]]
    # What their shapes follow from.
    shaping: ClassVar[tuple[str, ...]]

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What it is called."""

    @abc.abstractmethod
    def trunk(self) -> nn.Module:
        """The trunk alone, for maps of features [b y x d]."""

    @abc.abstractmethod
    def beyond(self) -> tuple[str, ...]:
        """First parts of names in files of weights that the trunk does without."""

    def make(self) -> TileEncoder:
        """The pure functions of the trunk and global average pooling.

        Raises:
            ValueError: the trunk cannot be made.
        """
        net = self.trunk()

        def apply(params: PyTree, pixels: Num[Array, "b h w 3"]) -> Float[Array, "b d"]:
            cells = net.apply(params, pixels)
            return cells.mean((1, 2), dtype=jnp.promote_types(cells.dtype, jnp.float32))

        return TileEncoder(self.init(net), apply, net.dim)

    def pooled(self, deviation: bool) -> TileEncoder:
        """As `make`; or, of the trunk's map, means and behind them deviations."""
        made, net = self.make(), self.trunk()
        if not deviation:
            return made
        apply = lambda params, pixels: mean_and_deviation(net.apply(params, pixels))
        return TileEncoder(made.init, apply, 2 * net.dim)

    def init(self, net: nn.Module) -> Callable:
        """key -> params of the trunk: those of the file, or random ones."""

        def init(key):
            side = 64 // self.multiple_px * self.multiple_px or self.multiple_px
            one = jnp.zeros((1, side, side, 3), jnp.uint8)
            if not self.weights:
                return net.init(key, one)
            self._origin()
            like = jax.eval_shape(net.init, key, one)["params"]
            try:
                found = pretrained.load(self.weights, like, self.beyond(), self.rename)
            except pretrained.WeightsError as error:
                here = self.describe()
                told = ", ".join(f"{name}={here[name]}" for name in self.shaping)
                raise pretrained.WeightsError(
                    f"{error}; the encoder has {told}"
                ) from error
            return {"params": found}

        return init

    def rename(self, name: str) -> tuple[str, int]:
        """Our name for a tensor of a file, and which part of ours it is."""
        return name, 0

    @property
    def multiple_px(self) -> int:
        """What the sides of tiles are multiples of."""
        return 1

    def check_tile(self, flag: str, size_px: int) -> None:
        """Refuses tiles that the trunk cannot see; `flag` is their side's.

        Raises:
            ValueError: naming the flag.
        """
        if size_px % self.multiple_px:
            down = size_px // self.multiple_px * self.multiple_px
            sides = " or ".join(map(str, filter(None, (down, down + self.multiple_px))))
            raise ValueError(
                f"--config.{flag}={size_px} does not divide into patches of "
                f"{self.multiple_px} px; make it {sides}"
            )

    def check(self, name: str) -> None:
        """Refuses weights that are not there; `name` is the trunk's in the config.

        Raises:
            ValueError: naming the flag.
        """
        if self.weights and not os.path.isfile(self.weights):
            raise ValueError(f"--config.{name}.weights={self.weights}: no such file")

    def begin(self, key: Key[Array, ""], batch: Bag | None) -> PyTree:
        """The parameters of a trunk that is to be trained on such batches."""
        del batch
        return self.make().init(key)

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
        plain = dataclasses.asdict(self) | {"weights": self.provenance()}
        named = lambda v: v.name if isinstance(v, enum.Enum) else str(v)
        return {name: named(value) for name, value in plain.items() if name != "seed"}

    def _origin(self) -> Origin | None:
        """Of the weights; None of random ones and of those made elsewhere."""
        origin = read_origin(self.weights) if self.weights else None
        if origin is None:
            return None
        # Layer and group norms have the same parameters: no shape would disagree.
        here = self.describe()
        wrong = [n for n in self.binding if origin.encoder.get(n) != here[n]]
        if wrong:
            have = ", ".join(f"{name}={here[name]}" for name in wrong)
            want = ", ".join(f"{name}={origin.encoder.get(name)}" for name in wrong)
            raise pretrained.WeightsError(
                f"{self.weights} was made for an encoder of {want}; this one has {have}"
            )
        return origin
