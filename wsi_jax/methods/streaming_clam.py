"""StreamingCLAM: a trunk over the whole slide and attention on it, end to end.

Dooper et al., Medical Image Analysis 88, 2023. The trunk's map is max-pooled to cells,
those with tissue are a bag, and CLAM's head (`nets.clam`) gives the verdict; the map is
streamed (`ops.streaming`), and equals that of a device large enough for the slide.

Two forms. The pure one takes images on the device [b h w 3], the staged one views of
slides on disk (`train.staged`). But for what dropout draws they train and judge alike.
"""

import dataclasses
import enum
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import lax

from wsi_jax.nets.attention import AttentionHead
from wsi_jax.nets.clam import Clam
from wsi_jax.nets.encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.nets.trunk import Trunk
from wsi_jax.ops.attention_weights import Normaliser
from wsi_jax.ops.augment import rotate_flip, shift_hsv
from wsi_jax.ops.stream_plan import StreamPlan, net_windows, plan_stream
from wsi_jax.ops.stream_tile import StreamError, TissueMask, receptive_field
from wsi_jax.ops.streaming import stream
from wsi_jax.ops.trunk_ops import max_pool
from wsi_jax.training.flops import count_flops
from wsi_jax.training.optimiser import Thaw
from wsi_jax.training.streamed import StreamedTraining, slide_keys
from wsi_jax.training.supervised import supervised
from wsi_jax.types import Method, Prediction, Stage, Takes, Task


class Mode(enum.Enum):
    """What becomes of a slide without tissue on it.

    every: it is computed and left out of the bag.
    near: only what a cell with tissue can see is computed: the same function, and the
        published one.
    masked: every window finds zeros there: another function, and the cheapest.
    """

    every = "all"
    near = "near"
    masked = "masked"


@dataclasses.dataclass(kw_only=True)
class Augment:
    """How a slide is changed each time it is trained on; the same all over it.

    Attributes:
        turn: one of the eight turns and flips.
        hue: most that is added to the hue, in turns of the colour circle.
        saturation: most that is added to it.
        value: most that is added to it.
        share: of the slides whose colours are changed.
    """

    turn: bool = True
    hue: float = 20 / 180
    saturation: float = 30 / 255
    value: float = 20 / 255
    share: float = 0.5

    @property
    def colours(self) -> tuple[float, float, float]:
        """Most that is added to hue, saturation and value."""
        return self.hue, self.saturation, self.value


@dataclasses.dataclass(kw_only=True)
class StreamingCLAM:
    """A trunk trained on whole slides with their labels alone.

    Attributes:
        trunk: of the map; trained from its weights where it has some.
        tile_px: side of the tiles that go by; larger is faster, and takes more memory.
        pool: side, in positions of the trunk's map, of a cell of the bag.
        stream_pool: whether the pooling goes tile by tile too. The same cells; without
            it the whole map is in memory before it is pooled.
        mode: what becomes of a slide without tissue on it.
        augment: of training slides.
        thaw: when the trunk begins to learn.
        offload: keep what tiles leave to their neighbours in host memory.
        width: of the embedding of each cell.
        attention: hidden width of the attention.
        dropout: rate in the head, while training.
        multi_branch: an attention for each class (CLAM-MB) rather than one (CLAM-SB).
        instance_weight: share of the clustering loss in the total.
        sampled: cells clustered from each end of the attention.
        subtyping: whether the classes exclude each other.
        chunk: cells embedded at a time.
        normaliser: how logits of the attention become weights; what is published is
            the softmax.
    """

    trunk: Trunk = dataclasses.field(
        default_factory=lambda: Encoder(depth=Depth.resnet34, norm=NormKind.frozen)
    )
    tile_px: int = 2048
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

    def validate(self) -> None:
        """Raises ValueError naming the flag that is wrong."""
        least = {"tile_px": 1, "pool": 1, "width": 1, "attention": 1, "sampled": 1}
        for name, least_of in (least | {"chunk": 1}).items():
            if (value := getattr(self, name)) < least_of:
                raise ValueError(f"--config.method.{name}={value}: {least_of} or more")
        shares = {name: getattr(self, name) for name in ("dropout", "instance_weight")}
        for name, value in (shares | {"augment.share": self.augment.share}).items():
            if not 0 <= value <= 1:
                raise ValueError(f"--config.method.{name}={value:g}: a share, 0 to 1")

    def check(self, cell_px: int) -> None:
        """Refuses a grid of other cells than its own, and tiles that do not go by.

        Args:
            cell_px: side of a tile of the grid.

        Raises:
            ValueError: naming the flags.
        """
        net = _Net(self, Task(("", "")))
        one = jax.ShapeDtypeStruct((1, 2048, 2048, 3), jnp.uint8)
        try:
            windows = net_windows(net.cells, net.shapes(), one)
            stride = receptive_field(windows).stride
            if self.tile_px % stride:
                least = -(-self.tile_px // stride) * stride
                raise ValueError(
                    f"--config.method.tile_px={self.tile_px} is no multiple of "
                    f"{stride}, the px between two cells; {least} is"
                )
            plan = net.plan(net.shapes())
        except StreamError as error:
            raise ValueError(f"--config.method.trunk: {error}") from error
        if net.cell_px(plan) != cell_px:
            side, stride = net.cell_px(plan), net.cell_px(plan) // self.pool
            raise ValueError(
                f"--config.grid.size_px={cell_px}, and a cell has {side} px (stride "
                f"{stride} of the trunk x --config.method.pool={self.pool}); make them "
                "one"
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
            task: what is to be told apart.
            tx: the optimiser.
            streamed: whether batches hold slides on disk, not images on the device.
        """
        net, tx = _Net(self, task), self.thaw.over(tx)
        if not streamed:
            return (Stage("train", net.pure(tx)),)
        slides = StreamedTraining(net, "--config.method")
        return (
            Stage("train", slides.method(tx), slides.memory_estimate, slides.saliency),
        )


class _Net:
    """Trunk and head as pure functions, and how slides are changed in training."""

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
        self.clam = Clam(
            head,
            config.chunk,
            instance_weight=config.instance_weight,
            sampled=config.sampled,
            subtyping=config.subtyping,
            normaliser=config.normaliser,
        )
        self.recolours = any(config.augment.colours)
        self.frozen, self.offload = config.thaw.frozen, config.offload
        self.pool = 1 if config.stream_pool else config.pool

    @functools.cached_property
    def tissue_px(self):
        """Side of the cells beyond which windows find zeros; 0 for none."""
        masked = self.config.mode is Mode.masked
        return self.cell_px(self.plan(self.shapes())) if masked else 0

    def init(self, key, trunk=None):
        trunk_key, head_key = jax.random.split(key)
        one = jnp.zeros((1, 1, self.trunk.dim), self.dtype)
        trunk = (trunk or self.config.trunk).make().init(trunk_key)
        return {"trunk": trunk, "head": self.clam.net.init(head_key, one)}

    def shapes(self):
        """Of the parameters; no file of weights is read."""
        bare = self.config.trained().trunk
        return jax.eval_shape(lambda key: self.init(key, bare), jax.random.key(0))

    def draw(self, key):
        """How a slide is changed: its turn, and the shift of its colours."""
        changes, keys = self.config.augment, jax.random.split(key, 3)
        which = jax.random.randint(keys[0], (), 0, 8) * changes.turn
        shift = jax.random.uniform(keys[1], (3,), minval=-1, maxval=1)
        shift *= jnp.array(changes.colours)
        return which, shift * jax.random.bernoulli(keys[2], changes.share)

    def seen(self, params, shift=None):
        """What `cells` takes, of a slide whose colours are shifted or not."""
        trunk = {"trunk": params["trunk"]}
        return trunk if shift is None else trunk | {"shift": shift}

    def cells(self, params, x, ops):
        """The map that is streamed."""
        if "shift" in params:  # which no gradient moves
            shift = lax.stop_gradient(params["shift"])
            x = ops.each(lambda pixels: shift_hsv(pixels, shift), x)
        x = self.trunk.apply(params["trunk"], x, ops)
        side = self.config.pool
        streamed = self.config.stream_pool and side > 1
        return ops.max_pool(x, side, side, 0, ceil=True) if streamed else x

    def pooled(self, cells):
        """The cells of the bag, from the map that is streamed."""
        side = self.pool
        return cells if side == 1 else max_pool(cells, side, side, 0, ceil=True)

    def wanted(self, plan, tissue, size_px):
        """Positions of the map that must be right, and the tissue that windows ask."""
        if self.config.mode is Mode.masked:
            return None, TissueMask(tissue, self.cell_px(plan))
        if self.config.mode is Mode.near:
            y, x = plan.cells(size_px)
            return tissue.repeat(self.pool, 0).repeat(self.pool, 1)[:y, :x], None
        return None, None

    def loss(self, head, x, mask, label, key):
        return self.clam.loss(head, x, mask, label, key)

    def verdict(self, head, x, mask):
        return self.clam.predict(head, x, mask)

    def plan(self, params, tile_px=None, dtype=jnp.uint8) -> StreamPlan:
        """For tiles of the configured side, or of another shape."""
        tile_px = tile_px or (self.config.tile_px, self.config.tile_px)
        return plan_stream(
            self.cells, params, jax.ShapeDtypeStruct((1, *tile_px, 3), dtype), tile_px
        )

    def cell_px(self, plan: StreamPlan) -> int:
        """Side of a cell of the bag."""
        return plan.field.stride * self.pool

    def pure(self, tx) -> Method:
        """Of images on the device, and a mask of their cells [b y x]."""
        tile = self.config.tile_px, self.config.tile_px

        def cells_of(params, image, tissue):
            """The bag [n d] of one image."""
            plan = self.plan(params, dtype=image.dtype)
            how = self.wanted(plan, tissue, image.shape[:2])
            found = stream(self.cells, params, image[None], tile, *how)
            return self.pooled(found)[0].reshape(-1, self.trunk.dim)

        def changed(params, image, tissue, key):
            which, shift = self.draw(key)
            if self.config.augment.turn:
                turned = lambda a: rotate_flip(a[None], which[None])[0]
                image, tissue = turned(image), turned(tissue[..., None])[..., 0]
            seen = self.seen(params, shift if self.recolours else None)
            return cells_of(seen, image, tissue), tissue

        def bags(params, batch, keys=None):
            if keys is None:
                one = lambda xs: (cells_of(self.seen(params), *xs), xs[1])
                x, mask = lax.map(one, (batch.x, batch.mask))
            else:
                one = lambda xs: changed(params, *xs)
                x, mask = lax.map(one, (batch.x, batch.mask, keys))
            return x, mask.reshape(len(mask), -1)

        def init(key, batch):
            del batch
            return self.init(key)

        def loss(params, batch, key):
            # Each slide has a key of its own, as in the staged form.
            look, head = slide_keys(key, len(batch.x))
            x, mask = bags(params, batch, look)
            each = lambda x, mask, label, key: jax.tree.map(
                lambda v: v[0],
                self.clam.loss(params["head"], x[None], mask[None], label[None], key),
            )
            return jax.vmap(each)(x, mask, batch.target, head)

        def predict(params, batch, key):
            del key
            x, mask = bags(params, batch)
            logits, attention = self.clam.predict(params["head"], x, mask)
            work = count_flops(lambda p, b: bags(p, b)[0], params, batch)
            flops = jnp.full(len(mask), work / len(mask), jnp.float32)
            counts = {"tiles": mask.sum(-1), "flops": flops}
            return Prediction(logits, attention, counts)

        return supervised(init, loss, predict, tx)
