"""StreamingCLAM: a trunk over the whole slide and attention on it, end to end.

Dooper et al., Medical Image Analysis 88, 2023. The trunk's map is max-pooled to cells,
those with tissue are a bag, and CLAM's head (`nets.clam`) gives the verdict; the map is
streamed (`ops.streaming`), and equals that of a device large enough for the slide.

Two forms, equal in all they give. The pure one takes images on the device [b h w 3],
the staged one views of slides on disk: it leaves the device after every tile.
"""

import dataclasses
import enum
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from wsi_jax.nets.attention import AttentionHead
from wsi_jax.nets.clam import Clam
from wsi_jax.nets.encoder import Depth, Encoder, Trunk
from wsi_jax.nets.norm import NormKind
from wsi_jax.ops.augment import shift_hsv, turn
from wsi_jax.ops.maps import max_pool
from wsi_jax.ops.passage import Tissue
from wsi_jax.ops.streaming import Plan, plan, stream
from wsi_jax.train.compile import Phases, compile_phase
from wsi_jax.train.flops import count_flops
from wsi_jax.train.optimiser import Thaw
from wsi_jax.train.outlook import outlook
from wsi_jax.train.supervised import supervised
from wsi_jax.train.walk import Route, saliency, walk, walk_back
from wsi_jax.types import (
    Method,
    Prediction,
    Stage,
    Takes,
    Task,
    TrainState,
    bucket,
)

SHORTEST = 256  # padded length of a bag


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

    takes: ClassVar[Takes] = Takes.slides

    def check(self, cell_px: int) -> None:
        """Refuses a grid of other cells than its own, and tiles that do not go by.

        Args:
            cell_px: side of a tile of the grid.

        Raises:
            ValueError: naming the flags.
        """
        net = _Net(self, Task(("", "")))
        plan = net.plan(net.shapes())
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
        self, task: Task, tx: optax.GradientTransformation, staged: bool = True
    ) -> tuple[Stage]:
        """One stage.

        Args:
            task: what is to be told apart.
            tx: the optimiser.
            staged: for views of slides rather than images on the device.
        """
        net, tx = _Net(self, task), self.thaw.over(tx)
        if not staged:
            return (Stage("train", net.pure(tx)),)
        streamed = Streamed(net)
        method, told = streamed.method(tx), (streamed.outlook, streamed.saliency)
        return (Stage("train", method, *told),)


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
        clustering = config.instance_weight, config.sampled, config.subtyping
        self.clam = Clam(head, config.chunk, *clustering)
        self.recolours = any(config.augment.colours)
        self.streams_pool = config.stream_pool or config.pool == 1

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
        return ops.max_pool(x, side, side, 0, ceil=True) if self.streams_pool else x

    def pooled(self, cells):
        """The cells of the bag, from the map that is streamed."""
        side = self.config.pool
        return cells if self.streams_pool else max_pool(cells, side, side, 0, ceil=True)

    def spread(self, tissue):
        """Tissue, from the cells of the bag to the map that is streamed."""
        n = 1 if self.streams_pool else self.config.pool
        return tissue.repeat(n, 0).repeat(n, 1)

    def plan(self, params, dtype=jnp.uint8, tile_px=None) -> Plan:
        """For tiles of the configured side, or of another shape."""
        tile_px = tile_px or (self.config.tile_px, self.config.tile_px)
        return plan(
            self.cells, params, jax.ShapeDtypeStruct((1, *tile_px, 3), dtype), tile_px
        )

    def cell_px(self, plan: Plan) -> int:
        """Side of a cell of the bag."""
        return plan.field.stride * (1 if self.streams_pool else self.config.pool)

    def pure(self, tx) -> Method:
        """Of images on the device, and a mask of their cells [b y x]."""
        mode, tile = self.config.mode, (self.config.tile_px, self.config.tile_px)

        def cells_of(params, image, tissue):
            """The bag [n d] of one image."""
            plan = self.plan(params, image.dtype)
            y, x = plan.cells(image.shape[:2])
            found = stream(
                self.cells,
                params,
                image[None],
                tile,
                wanted=self.spread(tissue)[:y, :x] if mode is Mode.near else None,
                tissue=Tissue(tissue, self.cell_px(plan))
                if mode is Mode.masked
                else None,
            )
            return self.pooled(found)[0].reshape(-1, self.trunk.dim)

        def changed(params, image, tissue, key):
            which, shift = self.draw(key)
            if self.config.augment.turn:
                turned = lambda a: turn(a[None], which[None])[0]
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
            look, head = _slide_keys(key, len(batch.x))
            x, mask = bags(params, batch, look)
            each = lambda x, mask, label, key: jax.tree.map(
                lambda v: v[0],
                self.clam.loss(params["head"], x[None], mask[None], label[None], key),
            )
            return jax.vmap(each)(x, mask, batch.label, head)

        def predict(params, batch, key):
            del key
            x, mask = bags(params, batch)
            logits, attention = self.clam.verdict(params["head"], x, mask)
            work = count_flops(lambda p, b: bags(p, b)[0], params, batch)
            flops = jnp.full(len(mask), work / len(mask), jnp.float32)
            counts = {"tiles": mask.sum(-1), "flops": flops}
            return Prediction(logits, attention, counts)

        return supervised(init, loss, predict, tx)


def _slide_keys(key, b):
    """Keys of the changes to each slide, and of its dropout."""
    return tuple(jax.random.split(half, b) for half in jax.random.split(key))


class Streamed:
    """The staged form: slides on disk, tile by tile, on the first device.

    Attributes:
        net: trunk and head.
        pool: the map that is streamed -> the cells of the bag.
        unpool: the map and a cotangent of the cells -> that of the map.
    """

    def __init__(self, net: _Net):
        self.net, clam, self._made = net, net.clam, {}

        def learn(grads, head, x, mask, label, share, key):
            """Adds a slide's share to the head's gradient; and the cells' own."""

            def loss(head, x):
                losses, metrics = clam.loss(head, x, mask, label, key)
                metrics = {"loss": losses} | metrics
                metrics = jax.tree.map(lambda v: share * v[0], metrics)
                return metrics["loss"], metrics

            (more, cells), metrics = jax.grad(loss, (0, 1), has_aux=True)(head, x)
            return jax.tree.map(jnp.add, grads, more), cells, metrics

        unpool = lambda cells, g: jax.vjp(net.pooled, cells)[1](g)[0]
        self._draw = compile_phase(net.draw)
        self._learn = compile_phase(learn, donate=(0,))
        self._verdict = compile_phase(clam.verdict)
        self.pool, self.unpool = compile_phase(net.pooled), compile_phase(unpool)

    def method(self, tx) -> Method:
        """Its three functions; `x` of a batch is a tuple of views."""

        def init(key, batch):
            del batch
            key, init_key = jax.random.split(key)
            params = self.net.init(init_key)
            return TrainState(jnp.int32(0), params, tx.init(params), key)

        def update(state, grads):
            updates, opt = tx.update(grads, state.opt, state.params)
            params = optax.apply_updates(state.params, updates)
            norm = optax.tree.norm(grads)
            return TrainState(state.step + 1, params, opt, state.key), norm

        keys = compile_phase(
            lambda key, step, b: _slide_keys(jax.random.fold_in(key, step), b.shape[0])
        )
        zeros = compile_phase(lambda params: jax.tree.map(jnp.zeros_like, params))
        updated = compile_phase(update, donate=(0,))
        frozen_for = self.net.config.thaw.frozen

        def step(state, batch):
            weight = np.asarray(batch.weight)
            looks, heads = keys(state.key, state.step, weight)
            trains = int(state.step) >= frozen_for
            grads, totals = zeros(state.params), {}
            for i, view in enumerate(batch.x):
                which, shift = jax.device_get(self._draw(looks[i]))
                shift = shift if self.net.recolours else None
                seen = self._look(state.params, view, int(which), shift, trains)
                grads["head"], cells, metrics = self._learn(
                    grads["head"], state.params["head"], *seen.bag(),
                    batch.label[i : i + 1], weight[i] / (weight.sum() or 1), heads[i],
                )  # fmt: skip
                if trains:
                    grads["trunk"] = seen.back(cells, grads["trunk"])
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0) + value
            state, norm = updated(state, grads)
            return state, totals | {"grad_norm": norm}

        def predict(params, batch, key):
            del key
            logits, attention, work = zip(
                *(self._judge(params, view) for view in batch.x), strict=True
            )
            longest = max(map(len, attention))
            pad = lambda a: np.pad(a, (0, longest - len(a)))
            tiles = np.array([len(a) for a in attention])
            counts = {"tiles": tiles, "flops": np.array(work)}
            return Prediction(
                np.stack(logits), np.stack([pad(a) for a in attention]), counts
            )

        return Method(init, step, predict, staged=True)

    def outlook(self, size_px: tuple[int, int]) -> str:
        """What a step on a slide of `size_px` takes; raises TileError."""
        net, (params, plan, phases) = self.net, self._prepared(self.net.recolours)
        replan = lambda tile_px: net.plan(params, tile_px=tile_px)
        flag, offload = "--config.method.tile_px", net.config.offload
        shapes = net.shapes()
        return outlook(phases, plan, replan, shapes, size_px, flag, offload)

    def saliency(self, params, view, label: int) -> Iterator:
        """How much each pixel moves the logit of a class, tile by tile, the last first.

        Args:
            params: trained.
            view: of the slide.
            label: index of the class.

        Yields:
            (row, column) of a tile, and the gradient of its pixels [h w 3].
        """
        seen = self._look(params, view)
        clam, (x, mask) = self.net.clam, map(jnp.asarray, seen.bag())
        logit = lambda x: clam.verdict(params["head"], x, mask)[0][0, label]
        for at, grad in seen.to_pixels(compile_phase(jax.grad(logit))(x)):
            yield at, grad[0]

    def _judge(self, params, view):
        """Logits [c], attention [n] and FLOPs of one slide."""
        seen = self._look(params, view, keep=False)
        x, mask = seen.bag()
        logits, attention = jax.device_get(self._verdict(params["head"], x, mask))
        work = count_flops(self.net.clam.verdict, params["head"], x, mask)
        n = int(view.tissue().sum())
        return logits[0], attention[0, :n], float(seen.flops() + work)

    def _look(self, params, view, which=0, shift=None, keep=True):
        """A slide, turned and recoloured, as the trunk sees it."""
        net, mode = self.net, self.net.config.mode
        _, plan, phases = self._prepared(shift is not None)
        tissue, size = view.tissue(which), view.turned(which)
        field = needed = None
        if mode is Mode.near:
            y, x = plan.cells(size)
            needed = plan.needed(net.spread(tissue)[:y, :x], size)
        elif mode is Mode.masked:
            field = Tissue(tissue, net.cell_px(plan))
            needed = plan.touched(field, size)
        read = lambda order: view.tiles(order, plan.tile_px, which)
        route = Route(plan, size, read, needed, field, net.config.offload)
        return _Look(self, phases, net.seen(params, shift), route, tissue, keep)

    def _prepared(self, shifted: bool):
        """Shapes of the trunk's parameters, plan and phases; made once."""
        if shifted not in self._made:
            self._made[shifted] = self._prepare(shifted)
        return self._made[shifted]

    def _prepare(self, shifted):
        net = self.net
        shift = jax.eval_shape(net.draw, jax.random.key(0))[1] if shifted else None
        params = net.seen(net.shapes(), shift)
        plan = net.plan(params)
        side = net.cell_px(plan) if net.config.mode is Mode.masked else 0
        return params, plan, Phases(net.cells, plan, params, side)


class _Look:
    """A slide that the trunk has gone over."""

    def __init__(self, streamed, phases, params, route, tissue, keep):
        self._streamed, self._phases = streamed, phases
        self._params, self._route = params, route
        self._walked = walk(phases, params, route, keep)
        self._cells = self._walked.cells
        if not streamed.net.streams_pool:
            self._cells = np.asarray(streamed.pool(self._canvas()))
        self._at = np.argwhere(tissue)
        # A sliver at the slide's edge may be too narrow for a position of the map.
        self._there = (self._at < self._cells.shape[1:3]).all(1)

    def bag(self):
        """The cells with tissue, row by row: features [1 n d] and mask [1 n]."""
        n = len(self._at)
        x = np.zeros((1, bucket(n, SHORTEST), self._cells.shape[-1]), self._cells.dtype)
        x[0, :n][self._there] = self._cells[0][self._places()]
        return x, np.pad(self._there, (0, x.shape[1] - n))[None]

    def back(self, cotangent, grads):
        """Adds to the trunk's gradient, from that of the bag."""
        whole = self._params | {"trunk": grads}
        if "shift" in whole:
            whole["shift"] = jnp.zeros_like(whole["shift"])
        found = walk_back(*self._way(), self._spread(cotangent), whole)
        return found["trunk"]

    def to_pixels(self, cotangent):
        """The gradient of the pixels, tile by tile, from that of the bag."""
        return saliency(*self._way(), self._spread(cotangent))

    def flops(self):
        """Of the tiles."""
        function, shapes = self._phases.forward_call
        return int(self._route.here().sum()) * count_flops(function, *shapes)

    def _way(self):
        return self._phases, self._params, self._route, self._walked

    def _places(self):
        """Of the bag, in the map of its cells."""
        return tuple(self._at[self._there].T)

    def _canvas(self):
        """The map that was streamed, -inf beyond it, of one of few shapes."""
        cells, side = self._walked.cells, self._streamed.net.config.pool
        more = [(0, bucket(n, side) - n) for n in cells.shape[1:3]]
        return np.pad(cells, [(0, 0), *more, (0, 0)], constant_values=-np.inf)

    def _spread(self, cotangent):
        """From the bag to the map that was streamed."""
        spread = np.zeros_like(self._cells)
        n = len(self._at)
        spread[0][self._places()] = np.asarray(cotangent)[0, :n][self._there]
        if self._streamed.net.streams_pool:
            return spread
        y, x = self._walked.cells.shape[1:3]
        return np.asarray(self._streamed.unpool(self._canvas(), spread))[:, :y, :x]
