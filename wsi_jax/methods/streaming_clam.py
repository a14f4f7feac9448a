"""StreamingCLAM: a trunk over the whole slide and attention on it, end to end.

Dooper et al., Medical Image Analysis 88, 2023. The trunk's map is max-pooled to cells,
those with tissue are a bag, and CLAM's head (`nets.clam`) classifies it. The map is
streamed (`ops.streaming`), and equals that of a device large enough for the slide.

Batches hold slides on disk (`training.streaming_training_from_disk`) or images on the
device (`training.streaming_training_on_device`). But for what dropout draws, both train
and predict alike.
"""

import dataclasses
import enum
import functools
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import lax

from wsi_jax.config_fields import COUNT
from wsi_jax.nets.attention import AttentionHead
from wsi_jax.nets.clam import Clam
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.nets.trunk import Trunk
from wsi_jax.ops.attention_weights import Normaliser
from wsi_jax.ops.augment import shift_hsv
from wsi_jax.ops.stream_plan import StreamPlan, net_windows, plan_stream
from wsi_jax.ops.stream_tile import StreamError, TissueMask
from wsi_jax.ops.trunk_ops import max_pool
from wsi_jax.ops.windows import receptive_field
from wsi_jax.training.optimiser import Thaw
from wsi_jax.training.streamed_net import StreamedNet
from wsi_jax.training.streaming_training_from_disk import StreamedTraining
from wsi_jax.training.streaming_training_on_device import image_method
from wsi_jax.types import Stage, Takes, Task


class Mode(enum.Enum):
    """Treatment of glass, where there is no tissue.

    every: glass is computed and left out of the bag.
    near: only what the receptive field of a cell with tissue covers is computed: the
        same function, and the published one.
    masked: every window reads zeros on glass: another function, and the cheapest.
    """

    every = "all"
    near = "near"
    masked = "masked"


@dataclasses.dataclass(kw_only=True)
class Augment:
    """Augmentation of a training slide, the same all over it.

    Attributes:
        turn: one of the eight turns and flips.
        hue: greatest change of the hue, in turns of the colour circle.
        saturation: greatest change of the saturation.
        value: greatest change of the value.
        probability: probability that a slide's colours are changed.
    """

    turn: bool = True
    hue: float = 20 / 180
    saturation: float = 30 / 255
    value: float = 20 / 255
    probability: float = 0.5

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"probability": (0, 1)}

    @property
    def colours(self) -> tuple[float, float, float]:
        """Greatest changes of hue, saturation and value."""
        return self.hue, self.saturation, self.value


@dataclasses.dataclass(kw_only=True)
class StreamingCLAM:
    """A trunk trained on whole slides with their labels alone.

    Attributes:
        trunk: the trunk; trained from its weights where it has some.
        tile_px: side of the streamed tiles; larger is faster, and takes more memory.
        batch: tiles computed at once, which takes as many times the memory; 0 for 8 on
            accelerators, to fill them, and 1 on a CPU.
        pool: side of a cell of the bag, in positions of the trunk's map.
        stream_pool: whether the pooling is streamed too. The same cells; without it the
            whole map is in memory before it is pooled.
        mode: treatment of glass.
        augment: augmentation of training slides.
        thaw: when the trunk begins to learn.
        offload: keep in host memory what tiles leave to their neighbours.
        width: width of the embedding of each cell.
        attention: hidden width of the attention.
        dropout: dropout rate in the head.
        multi_branch: an attention for each class (CLAM-MB) rather than one (CLAM-SB).
        instance_weight: share of the clustering loss in the total.
        sampled: cells clustered from each end of the attention.
        subtyping: whether the classes exclude each other.
        chunk: cells embedded at a time.
        normaliser: how attention logits become weights; the paper's is the softmax.
    """

    trunk: Trunk = dataclasses.field(
        default_factory=lambda: Encoder(depth=Depth.resnet34, norm=NormKind.frozen)
    )
    tile_px: int = 1024
    batch: int = 0
    pool: int = 8
    stream_pool: bool = True
    mode: Mode = Mode.near
    augment: Augment = dataclasses.field(default_factory=Augment)
    thaw: Thaw = dataclasses.field(default_factory=Thaw)
    offload: bool = False
    width: int = 512
    attention: int = 256
    dropout: float = 0.0
    multi_branch: bool = False
    instance_weight: float = 0.0
    sampled: int = 8
    subtyping: bool = False
    chunk: int = 16384
    normaliser: Normaliser = Normaliser.softmax

    takes: ClassVar[Takes] = Takes.slides
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **dict.fromkeys(("tile_px", "pool", "width"), COUNT),
        "batch": (0, math.inf),
        **dict.fromkeys(("attention", "sampled", "chunk"), COUNT),
        **dict.fromkeys(("dropout", "instance_weight"), (0, 1)),
    }

    def check(self, cell_px: int) -> None:
        """Refuses a grid of other cells than its own, and tiles that cannot stream.

        Args:
            cell_px: side of a tile of the grid.

        Raises:
            ValueError: naming the flags.
        """
        # Nothing here asks for devices: several processes have not met yet.
        net = _Net(dataclasses.replace(self, batch=1), Task(("", "")))
        one = jax.ShapeDtypeStruct((1, 2048, 2048, 3), jnp.uint8)
        try:
            windows = net_windows(net.feature_map, net.shapes(), one)
            stride = receptive_field(windows).stride
            if self.tile_px % stride:
                least = -(-self.tile_px // stride) * stride
                raise ValueError(
                    f"--config.method.tile_px={self.tile_px} is no multiple of "
                    f"{stride}, the px between two cells; {least} is"
                )
            side = net.cell_px(net.plan(net.shapes()))
        except StreamError as error:
            raise ValueError(f"--config.method.trunk: {error}") from error
        if side != cell_px:
            raise ValueError(
                f"--config.grid.size_px={cell_px}, and a cell has {side} px (stride "
                f"{side // self.pool} of the trunk x --config.method.pool="
                f"{self.pool}); make them one"
            )

    def trained(self) -> "StreamingCLAM":
        """The method as its checkpoint needs it: without a file of weights."""
        trunk = dataclasses.replace(self.trunk, weights="")
        return dataclasses.replace(self, trunk=trunk)

    def stages(
        self, task: Task, tx: optax.GradientTransformation, streamed: bool = True
    ) -> tuple[Stage, ...]:
        """One stage.

        Args:
            streamed: whether batches hold slides on disk, not images on the device.
        """
        net, tx = _Net(self, task), self.thaw.over(tx)
        if not streamed:
            method = image_method(net, (self.tile_px, self.tile_px), tx)
            return (Stage("train", method),)
        streamed = StreamedNet(net, "--config.method")
        return (
            Stage(
                "train",
                StreamedTraining(streamed).method(tx),
                memory_estimate=streamed.memory_estimate,
                saliency=streamed.saliency,
                predict_by_tiles=streamed.predict_by_tiles,
            ),
        )


class _Net:
    """Trunk and head as pure functions: a `Streamable` of the training by streaming."""

    def __init__(self, config: StreamingCLAM, task: Task):
        self.config, c = config, len(task.classes)
        self.trunk, self.dtype = config.trunk.trunk(), config.trunk.dtype.value
        head = AttentionHead(
            n_classes=c,
            branches=c if config.multi_branch else 1,
            width=config.width,
            attention=config.attention,
            dropout=config.dropout,
            dtype=self.dtype,
        )
        self.clam = Clam.of(head, config)
        self.loss, self.predict = self.clam.loss, self.clam.predict
        self.turns = config.augment.turn
        self.shifts_colours = any(config.augment.colours)
        self.frozen_steps, self.offload = config.thaw.frozen, config.offload
        self.pool = 1 if config.stream_pool else config.pool

    @functools.cached_property
    def tissue_px(self):
        masked = self.config.mode is Mode.masked
        return self.cell_px(self.plan(self.shapes())) if masked else 0

    def init(self, key, trunk=None):
        trunk_key, head_key = jax.random.split(key)
        one = jnp.zeros((1, 1, self.trunk.dim), self.dtype)
        trunk = (trunk or self.config.trunk).make().init(trunk_key)
        return {"trunk": trunk, "head": self.clam.net.init(head_key, one)}

    def shapes(self):
        bare = self.config.trained().trunk
        return jax.eval_shape(lambda: self.init(jax.random.key(0), bare))

    def draw_augmentation(self, key):
        augment, keys = self.config.augment, jax.random.split(key, 3)
        which = jax.random.randint(keys[0], (), 0, 8) * augment.turn
        shift = jax.random.uniform(keys[1], (3,), minval=-1, maxval=1)
        shift *= jnp.array(augment.colours)
        return which, shift * jax.random.bernoulli(keys[2], augment.probability)

    def trunk_input(self, params, shift=None):
        trunk = {"trunk": params["trunk"]}
        return trunk if shift is None else trunk | {"shift": shift}

    def feature_map(self, params, x, ops):
        if "shift" in params:  # which no gradient moves
            shift = lax.stop_gradient(params["shift"])
            x = ops.each(lambda pixels: shift_hsv(pixels, shift), x)
        x = self.trunk.apply(params["trunk"], x, ops)
        side = self.config.pool
        streamed = self.config.stream_pool and side > 1
        return ops.max_pool(x, side, side, 0, ceil=True) if streamed else x

    def pool_map(self, cells):
        side = self.pool
        return cells if side == 1 else max_pool(cells, side, side, 0, ceil=True)

    def required(self, plan, tissue, size_px):
        if self.config.mode is Mode.masked:
            return None, TissueMask(tissue, self.cell_px(plan))
        if self.config.mode is Mode.near:
            y, x = plan.cells(size_px)
            return tissue.repeat(self.pool, 0).repeat(self.pool, 1)[:y, :x], None
        return None, None

    def plan(self, params, tile_px=None, dtype=jnp.uint8) -> StreamPlan:
        tile_px = tile_px or (self.config.tile_px, self.config.tile_px)
        batch = self.config.batch or (1 if jax.default_backend() == "cpu" else 8)
        tiles = jax.ShapeDtypeStruct((batch, *tile_px, 3), dtype)
        return plan_stream(self.feature_map, params, tiles, tile_px, packed=True)

    def cell_px(self, plan: StreamPlan) -> int:
        """Side of a cell of the bag."""
        return plan.field.stride * self.pool
