"""The training step of a trunk over slides on disk: `supervised`, tile by tile.

What `supervised` is to a loss on the device this is to slides of any size: forward tile
by tile, the head's loss, backward tile by tile, one update. It leaves the device after
every tile and runs on the first one.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wsi_jax.ops.stream_plan import StreamPlan
from wsi_jax.training.compile import Phases, compile_phase
from wsi_jax.training.flops import count_flops
from wsi_jax.training.memory_estimate import memory_estimate
from wsi_jax.training.tile_passes import (
    Route,
    backward_pass,
    forward_pass,
    pixel_gradients,
)
from wsi_jax.types import Method, Prediction, TrainState, bucket

SHORTEST = 256  # padded length of a bag


@runtime_checkable
class Streamable(Protocol):
    """A trunk and a head as pure functions.

    Attributes:
        frozen: steps in which the trunk stands still.
        pool: side, in positions of the map, of a cell that is pooled behind it; 1
            where the map is the bag's cells.
        recolours: whether slides are recoloured in training.
        tissue_px: side of the cells beyond which windows find zeros; 0 for none.
        offload: whether seams go to host memory.
    """

    frozen: int
    pool: int
    recolours: bool
    tissue_px: int
    offload: bool

    def init(self, key) -> dict:
        """{"trunk": ..., "head": ...}."""

    def shapes(self) -> dict:
        """Of these parameters; no file is read."""

    def draw(self, key) -> tuple:
        """How a slide is changed: its turn, and the shift of its colours."""

    def seen(self, params, shift) -> dict:
        """What `cells` takes of a slide whose colours are shifted, or not (None)."""

    def cells(self, params, x, ops):
        """The map that is streamed."""

    def pooled(self, cells):
        """The bag's cells, from the map."""

    def plan(self, params, tile_px=None) -> StreamPlan:
        """For tiles of the configured side, or of another shape."""

    def wanted(self, plan: StreamPlan, tissue, size_px) -> tuple:
        """(positions of the map that must be right, tissue that windows ask); or None
        for all, and for none."""

    def loss(self, head, x, mask, label, key) -> tuple:
        """Of each slide of a bag, and metrics."""

    def verdict(self, head, x, mask) -> tuple:
        """Logits and attention."""


class StreamedTraining:
    """A streamable net on slides; `x` of its batches is a tuple of views.

    Args:
        net: trunk and head.
        flag: where its config is, for messages.
    """

    def __init__(self, net: Streamable, flag: str):
        self.net, self._flag, self._made, self._flops = net, flag, {}, {}
        unpool = lambda cells, g: jax.vjp(net.pooled, cells)[1](g)[0]
        self.pool, self.unpool = compile_phase(net.pooled), compile_phase(unpool)
        self._verdict = compile_phase(net.verdict)

    def method(self, tx: optax.GradientTransformation) -> Method:
        """Its three functions."""
        net = self.net

        def init(key, batch):
            del batch
            key, init_key = jax.random.split(key)
            params = net.init(init_key)
            return TrainState(jnp.int32(0), params, tx.init(params), key)

        def learn(grads, head, x, mask, label, share, part, key):
            """Adds a slide's share to the head's gradient; and the bag's own.

            Of the loss a slide has its weighted share, of other metrics an equal part.
            """

            def loss(head, x):
                losses, metrics = net.loss(head, x, mask, label, key)
                loss = share * losses[0]
                return loss, {"loss": loss} | {
                    k: part * v[0] for k, v in metrics.items()
                }

            (more, bag), metrics = jax.grad(loss, (0, 1), has_aux=True)(head, x)
            return jax.tree.map(jnp.add, grads, more), bag, metrics

        def update(state, grads):
            updates, opt = tx.update(grads, state.opt, state.params)
            params = optax.apply_updates(state.params, updates)
            norm = optax.tree.norm(grads)
            return TrainState(state.step + 1, params, opt, state.key), norm

        keys = compile_phase(
            lambda key, step, weight: slide_keys(
                jax.random.fold_in(key, step), len(weight)
            )
        )
        draw, zeros = compile_phase(net.draw), compile_phase(_zeros)
        learned = compile_phase(learn, donate=(0,))
        updated = compile_phase(update, donate=(0,))

        def step(state, batch):
            weight = np.asarray(batch.weight)
            count = max(1, np.count_nonzero(weight))
            shares, parts = weight / count, (weight > 0).astype(weight.dtype) / count
            looks, heads = keys(state.key, state.step, weight)
            trains = int(state.step) >= net.frozen
            grads, totals = zeros(state.params), {}
            for i, view in enumerate(batch.x):
                which, shift = jax.device_get(draw(looks[i]))
                shift = shift if net.recolours else None
                look = self._look(state.params, view, int(which), shift, trains)
                grads["head"], bag, metrics = learned(
                    grads["head"], state.params["head"], *look.bag(),
                    batch.target[i : i + 1], shares[i], parts[i], heads[i],
                )  # fmt: skip
                if trains:
                    grads["trunk"] = look.back(bag, grads["trunk"])
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0) + value
                del look  # and its seams, before those of the next slide
            state, norm = updated(state, grads)
            return state, totals | {"grad_norm": norm}

        def predict(params, batch, key):
            del key
            judged = [self._judge(params, view) for view in batch.x]
            logits, attention, flops = zip(*judged, strict=True)
            longest = max(map(len, attention))
            padded = [np.pad(a, (0, longest - len(a))) for a in attention]
            tiles = np.array([len(a) for a in attention])
            counts = {"tiles": tiles, "flops": np.array(flops)}
            return Prediction(np.stack(logits), np.stack(padded), counts)

        return Method(init, step, predict, precompiled=True)

    def memory_estimate(self, views: Iterable) -> str:
        """What a step takes on that of some slides of which most is computed.

        Raises:
            TileError: more than the device has.
        """
        net, (params, plan, phases) = self.net, self._prepared(self.net.recolours)
        routes = [self._route(plan, view, 0)[0] for view in views]
        largest = max(routes, key=lambda route: route.here().sum())
        replan = lambda tile_px: net.plan(params, tile_px)
        return memory_estimate(
            phases, largest, replan, net.shapes(), self._flag, net.frozen
        )

    def saliency(self, params: Any, view: Any, label: int) -> Iterator:
        """How much each pixel moves the logit of a class, tile by tile, the last first.

        Args:
            params: trained.
            view: of the slide.
            label: index of the class.

        Yields:
            (row, column) of a tile, and the gradient of its pixels [h w 3].
        """
        look, net = self._look(params, view), self.net
        x, mask = map(jnp.asarray, look.bag())
        logit = lambda x: net.verdict(params["head"], x, mask)[0][0, label]
        for at, grad in look.to_pixels(compile_phase(jax.grad(logit))(x)):
            yield at, grad[0]

    def _judge(self, params, view):
        """Logits [c], attention [n] and FLOPs of one slide."""
        look = self._look(params, view, keep=False)
        x, mask = look.bag()
        logits, attention = jax.device_get(self._verdict(params["head"], x, mask))
        if x.shape not in self._flops:
            work = count_flops(self.net.verdict, params["head"], x, mask)
            self._flops[x.shape] = work
        flops = float(look.flops() + self._flops[x.shape])
        return logits[0], attention[0, : len(look.at)], flops

    def _look(self, params, view, which=0, shift=None, keep=True):
        """A slide, turned and recoloured, as the trunk sees it."""
        _, plan, phases = self._prepared(shift is not None)
        route, tissue = self._route(plan, view, which)
        return _Look(self, phases, self.net.seen(params, shift), route, tissue, keep)

    def _route(self, plan, view, which):
        """Through a slide as it is turned, and its tissue."""
        tissue = view.tissue(which)
        if not tissue.any():  # slivers at the edge may be lost in turning
            which, tissue = 0, view.tissue()
        size = view.rotated_shape(which)
        wanted, field = self.net.wanted(plan, tissue, size)
        needed = None if wanted is None else plan.tiles_for_cells(wanted, size)
        needed = needed if field is None else plan.tiles_on_tissue(field, size)
        read = lambda order: view.tiles(order, plan.tile_px, which)
        return Route(plan, size, read, needed, field, self.net.offload), tissue

    def _prepared(self, shifted: bool):
        """Shapes of what the trunk takes, plan and phases; made once."""
        if shifted not in self._made:
            net = self.net
            shift = jax.eval_shape(net.draw, jax.random.key(0))[1] if shifted else None
            params = net.seen(net.shapes(), shift)
            plan = net.plan(params)
            phases = Phases(net.cells, plan, params, net.tissue_px)
            self._made[shifted] = params, plan, phases
        return self._made[shifted]


class _Look:
    """A slide that the trunk has gone over.

    Attributes:
        at: (row, column) of the cells with tissue [n 2], row by row.
    """

    def __init__(self, staged, phases, params, route, tissue, keep):
        self._staged, self._phases = staged, phases
        self._params, self._route = params, route
        self._walked = forward_pass(phases, params, route, keep)
        self._cells = self._walked.cells
        if (side := staged.net.pool) > 1:
            y, x = (-(-n // side) for n in self._cells.shape[1:3])
            self._cells = np.asarray(staged.pool(self._canvas()))[:, :y, :x]
        self.at = np.argwhere(tissue)
        # A sliver at the slide's edge may be too narrow for a position of the map.
        self._there = (self.at < self._cells.shape[1:3]).all(1)

    def bag(self):
        """The cells with tissue, row by row: features [1 n d] and mask [1 n]."""
        n = len(self.at)
        x = np.zeros((1, bucket(n, SHORTEST), self._cells.shape[-1]), self._cells.dtype)
        x[0, :n][self._there] = self._cells[0][self._places()]
        return x, np.pad(self._there, (0, x.shape[1] - n))[None]

    def back(self, cotangent, grads):
        """Adds to the trunk's gradient, from that of the bag."""
        whole = _zeros(self._params | {"trunk": {}}) | {"trunk": grads}
        return backward_pass(*self._way(), self._spread(cotangent), whole)["trunk"]

    def to_pixels(self, cotangent):
        """The gradient of the pixels, tile by tile, from that of the bag."""
        return pixel_gradients(*self._way(), self._spread(cotangent))

    def flops(self):
        """Of the tiles, on the way there."""
        return int(self._route.here().sum()) * self._phases.flops[0]

    def _way(self):
        return self._phases, self._params, self._route, self._walked

    def _places(self):
        """Of the bag, in the map of its cells."""
        return tuple(self.at[self._there].T)

    def _canvas(self):
        """The map that was streamed, -inf beyond it, of one of few shapes."""
        cells, side = self._walked.cells, self._staged.net.pool
        more = [(0, bucket(n, side) - n) for n in cells.shape[1:3]]
        return np.pad(cells, [(0, 0), *more, (0, 0)], constant_values=-np.inf)

    def _spread(self, cotangent):
        """From the bag to the map that was streamed."""
        spread, n = np.zeros_like(self._cells), len(self.at)
        spread[0][self._places()] = np.asarray(cotangent)[0, :n][self._there]
        if (side := self._staged.net.pool) == 1:
            return spread
        canvas, (y, x) = self._canvas(), self._walked.cells.shape[1:3]
        more = [
            (0, n // side - m)
            for n, m in zip(canvas.shape[1:3], spread.shape[1:3], strict=True)
        ]
        spread = np.pad(spread, [(0, 0), *more, (0, 0)])
        return np.asarray(self._staged.unpool(canvas, spread))[:, :y, :x]


def slide_keys(key, b: int):
    """Keys of the changes to each slide of a batch, and of its dropout."""
    return tuple(jax.random.split(half, b) for half in jax.random.split(key))


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)
