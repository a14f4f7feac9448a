"""Vision-transformer encoders of tiles."""

import dataclasses
import enum
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PyTree

from wsi_jax.nets.transformer import Bias, MlpKind
from wsi_jax.nets.trunk import TileEncoder, Trunk
from wsi_jax.nets.vit import PositionKind, ViT
from wsi_jax.nets.vit_weight_names import rename


class Output(enum.Enum):
    """Features that are made of a tile's tokens.

    class_token: the class token.
    class_and_mean: the class token, followed by the mean of the patch tokens.
    mean: the mean of the patch tokens.
    """

    class_token = "class_token"
    class_and_mean = "class_and_mean"
    mean = "mean"


@dataclasses.dataclass(kw_only=True)
class ViTEncoder(Trunk):
    """A vision transformer (Dosovitskiy et al. 2021); by itself a ViT-S/16.

    `nets.foundation_models` lists published ones. Methods that take maps of features
    get the patch tokens; a method that streams refuses a ViT.

    Attributes:
        width: width of a token.
        depth: number of blocks.
        heads: number of attention heads.
        hidden: hidden width of the feedforward layers, gates included.
        patch: side of a patch, in pixels; tiles are multiples of it.
        registers: number of register tokens, read by no output (Darcet et al. 2024).
        mlp: kind of feedforward layers.
        positions: kind of position embedding.
        bias: which of queries, keys and values have a bias.
        layer_scale: initial scale of each residual branch; 0 for none.
        native_px: side of the tiles that learned positions are for; interpolated on
            others.
        eps: added to the variance in norms.
        output: features that are made of the tokens.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    hidden: int = 1536
    patch: int = 16
    registers: int = 0
    mlp: MlpKind = MlpKind.gelu
    positions: PositionKind = PositionKind.tokens
    bias: Bias = Bias.all
    layer_scale: float = 0.0
    native_px: int = 224
    eps: float = 1e-6
    output: Output = Output.class_token

    weight_fields: ClassVar[tuple[str, ...]] = (
        "heads", "mlp", "positions", "bias", "eps", "mean", "std",
    )  # fmt: skip
    shape_fields: ClassVar[tuple[str, ...]] = (
        "width", "depth", "hidden", "patch", "registers", "mlp", "positions", "bias",
        "layer_scale", "native_px",
    )  # fmt: skip

    def validate(self) -> None:
        """Raises ValueError for options that describe no transformer."""
        least = min(self.width, self.depth, self.heads, self.hidden, self.patch)
        if least < 1 or self.registers < 0 or self.layer_scale < 0:
            raise ValueError(
                f"a ViT of width={self.width}, depth={self.depth}, heads={self.heads}, "
                f"hidden={self.hidden}, patch={self.patch}: no number below 1; "
                f"registers={self.registers}, layer_scale={self.layer_scale:g}: not "
                "below 0"
            )
        if self.width % self.heads:
            raise ValueError(
                f"width={self.width} does not divide by heads={self.heads}"
            )
        if self.positions is PositionKind.rotary and self.width // self.heads % 4:
            raise ValueError(
                f"heads of {self.width // self.heads} numbers: rotary positions take "
                "a multiple of 4"
            )
        if self.mlp is MlpKind.swiglu and self.hidden % 2:
            raise ValueError(f"hidden={self.hidden}: half are gates, make it even")
        if self.native_px % self.patch:
            raise ValueError(
                f"native_px={self.native_px} is no multiple of patch={self.patch}"
            )

    @property
    def name(self) -> str:
        return "vit"

    def trunk(self) -> ViT:
        """The net: pixels to maps of patch tokens [b y x d]."""
        self.validate()
        return ViT(self)

    def make(self) -> TileEncoder:
        """The encoder as pure functions: pixels to the features of `output`."""
        net = self.trunk()

        def apply(params: PyTree, pixels: Num[Array, "b h w 3"]) -> Float[Array, "b d"]:
            x = net.apply(params, pixels, method="tokens")
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            mean = x[:, 1 + self.registers :].mean(1)
            match self.output:
                case Output.class_token:
                    return x[:, 0]
                case Output.class_and_mean:
                    return jnp.concatenate([x[:, 0], mean], -1)
                case Output.mean:
                    return mean

        twice = self.output is Output.class_and_mean
        return TileEncoder(self.init(net), apply, net.dim * (2 if twice else 1))

    def ignored_prefixes(self) -> tuple[str, ...]:
        """Prefixes of classifiers, and of parameters that only pre-training uses."""
        return (
            "fc.", "head.", "pooler.", "mask_token", "local_cls_norm.", "rope_embed.",
        )  # fmt: skip

    def rename(self, name: str) -> tuple[str, int]:
        """timm's name and position for a tensor of DINOv2, DINOv3 or transformers."""
        return rename(name)

    @property
    def multiple_px(self) -> int:
        """Side of a patch, in pixels."""
        return self.patch
