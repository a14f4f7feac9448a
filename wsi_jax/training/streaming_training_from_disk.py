"""Training of a trunk and a head on whole slides on disk, tile by tile.

Forward tile by tile, the head's loss, backward tile by tile, one update. It leaves the
device after every tile and runs on the first one.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wsi_jax.ops.slide_keys import halves, slide_keys
from wsi_jax.ops.stream_plan import StreamPlan
from wsi_jax.training.compile import Phases, compile_phase
from wsi_jax.training.flops import count_flops
from wsi_jax.training.mapped_slide import MappedSlide, Pooling
from wsi_jax.training.memory_estimate import memory_estimate
from wsi_jax.training.tile_passes import Route
from wsi_jax.types import Method, Prediction, TrainState


@runtime_checkable
class Streamable(Protocol):
    """A trunk and a head as pure functions.

    Attributes:
        frozen_steps: steps in which the trunk is not trained.
        pool: side, in positions of the map, of a cell that is pooled from the map; 1
            where the map's positions are the cells.
        turns: whether training turns slides.
        shifts_colours: whether training changes the colours of slides.
        tissue_px: side of the cells beyond which windows read zeros; 0 for none.
        offload: whether seams go to host memory.
    """

    frozen_steps: int
    pool: int
    turns: bool
    shifts_colours: bool
    tissue_px: int
    offload: bool

    def init(self, key) -> dict:
        """{"trunk": ..., "head": ...}."""

    def shapes(self) -> dict:
        """Shapes of these parameters; no file is read."""

    def draw_augmentation(self, key) -> tuple:
        """A turn of a slide, and a shift of its colours."""

    def trunk_input(self, params, shift=None) -> dict:
        """Parameters of `feature_map`, for a shift of colours or None."""

    def feature_map(self, params, x, ops):
        """The map that is streamed."""

    def pool_map(self, cells):
        """The cells of the bag, from the map."""

    def plan(self, params, tile_px=None, dtype=jnp.uint8) -> StreamPlan:
        """The plan for tiles of the configured side, or of another shape."""

    def required(self, plan: StreamPlan, tissue, size_px) -> tuple:
        """(positions of the map that must be right, tissue beyond which windows read
        zeros); None for all positions, and for no such tissue."""

    def loss(self, head, x, mask, label, keys) -> tuple:
        """Losses of the slides of a bag, and metrics."""

    def predict(self, head, x, mask) -> tuple:
        """Logits and attention."""


class StreamedTraining:
    """The Method of a streamable net; `x` of its batches is a tuple of slides.

    Args:
        flag: flag of its config, for messages.
    """

    def __init__(self, net: Streamable, flag: str):
        self.net, self._flag, self._prepared, self._flops = net, flag, {}, {}
        self._pooling = Pooling.of(net.pool, net.pool_map)
        self._predict = compile_phase(net.predict)

    def method(self, tx: optax.GradientTransformation) -> Method:
        """Its init, step and predict."""

        def init(key, batch):
            del batch
            key, init_key = jax.random.split(key)
            params = self.net.init(init_key)
            return TrainState(jnp.int32(0), params, tx.init(params), key)

        def predict(params, batch, key):
            del key
            results = [self._predict_slide(params, slide) for slide in batch.x]
            logits, attention, flops = zip(*results, strict=True)
            longest = max(map(len, attention))
            padded = [np.pad(a, (0, longest - len(a))) for a in attention]
            tiles = np.array([len(a) for a in attention])
            counts = {"tiles": tiles, "flops": np.array(flops)}
            return Prediction(np.stack(logits), np.stack(padded), counts)

        return Method(init, self._step(tx), predict, precompiled=True)

    def _step(self, tx):
        net, keys = self.net, compile_phase(_batch_keys)
        draw, zeros = compile_phase(net.draw_augmentation), compile_phase(_zeros)
        learn = compile_phase(self._learn, donate=(0,))

        def update(state, grads):
            updates, opt = tx.update(grads, state.opt, state.params)
            params = optax.apply_updates(state.params, updates)
            norm = optax.tree.norm(grads)
            return TrainState(state.step + 1, params, opt, state.key), norm

        update = compile_phase(update, donate=(0,))

        def step(state, batch):
            weight = np.asarray(batch.weight)
            count = max(1, np.count_nonzero(weight))
            shares, parts = weight / count, (weight > 0).astype(weight.dtype) / count
            augment_keys, head_keys = keys(state.key, state.step, weight)
            trains = int(state.step) >= net.frozen_steps
            grads, totals = zeros(state.params), {}
            for i, slide in enumerate(batch.x):
                turn, shift = jax.device_get(draw(augment_keys[i]))
                shift = shift if net.shifts_colours else None
                mapped = self._map(state.params, slide, int(turn), shift, trains)
                grads["head"], bag, metrics = learn(
                    grads["head"], state.params["head"], *mapped.bag(),
                    batch.target[i : i + 1], (shares[i], parts[i]), head_keys[i],
                )  # fmt: skip
                if trains:
                    grads["trunk"] = mapped.backward(bag, grads["trunk"])
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0) + value
                del mapped  # and its seams, before those of the next slide
            state, norm = update(state, grads)
            return state, totals | {"grad_norm": norm}

        return step

    def _learn(self, grads, head, x, mask, label, shares, key):
        """Adds a slide's gradient to the head's; also the bag's gradient, and metrics.

        `shares` are the slide's weighted share of the loss, and its equal share of the
        other metrics.
        """
        share, part = shares

        def loss(head, x):
            losses, metrics = self.net.loss(head, x, mask, label, key[None])
            loss = share * losses[0]
            return loss, {"loss": loss} | {k: part * v[0] for k, v in metrics.items()}

        (more, bag), metrics = jax.grad(loss, (0, 1), has_aux=True)(head, x)
        return jax.tree.map(jnp.add, grads, more), bag, metrics

    def memory_estimate(self, slides: Iterable) -> str:
        """Memory and work of a step on that of some slides of which most is computed.

        Raises:
            TileError: more than the device has.
        """
        net = self.net
        params, plan, phases = self._prepare(net.shifts_colours)
        routes = [self._route(plan, slide, 0)[0] for slide in slides]
        return memory_estimate(
            phases,
            max(routes, key=lambda route: route.computed().sum()),
            lambda tile_px: net.plan(params, tile_px),
            net.shapes(),
            self._flag,
            net.frozen_steps,
        )

    def saliency(self, params: Any, slide: Any, label: int) -> Iterator:
        """How much each pixel moves the logit of a class, tile by tile, the last first.

        Yields:
            (row, column) of a tile, and the gradient of its pixels [h w 3].
        """
        mapped = self._map(params, slide)
        x, mask = map(jnp.asarray, mapped.bag())
        logit = lambda x: self.net.predict(params["head"], x, mask)[0][0, label]
        for at, grad in mapped.to_pixels(compile_phase(jax.grad(logit))(x)):
            yield at, grad[0]

    def _predict_slide(self, params, slide):
        """Logits [c], attention [n] and FLOPs of one slide."""
        mapped = self._map(params, slide, keep=False)
        x, mask = mapped.bag()
        logits, attention = jax.device_get(self._predict(params["head"], x, mask))
        if x.shape not in self._flops:
            work = count_flops(self.net.predict, params["head"], x, mask)
            self._flops[x.shape] = work
        flops = float(mapped.flops() + self._flops[x.shape])
        return logits[0], attention[0, : len(mapped.yx)], flops

    def _map(self, params, slide, turn=0, shift=None, keep=True):
        """The map of a slide, turned and with other colours."""
        _, plan, phases = self._prepare(shift is not None)
        route, tissue = self._route(plan, slide, turn)
        params = self.net.trunk_input(params, shift)
        return MappedSlide(self._pooling, phases, params, route, tissue, keep)

    def _route(self, plan, slide, turn):
        """The tiles of a turned slide, and its tissue."""
        tissue = slide.tissue(turn)
        if not tissue.any():  # slivers at the edge may be lost in turning
            turn, tissue = 0, slide.tissue()
        size = slide.rotated_shape(turn)
        positions, field = self.net.required(plan, tissue, size)
        needed = None if positions is None else plan.tiles_for_cells(positions, size)
        needed = needed if field is None else plan.tiles_on_tissue(field, size)
        read = lambda order: slide.tiles(order, plan.tile_px, turn)
        return Route(plan, size, read, needed, field, self.net.offload), tissue

    def _prepare(self, shifted: bool):
        """Shapes of the trunk's input, plan and phases; made once."""
        if shifted not in self._prepared:
            net, shift = self.net, None
            if shifted:
                _, shift = jax.eval_shape(net.draw_augmentation, jax.random.key(0))
            params = net.trunk_input(net.shapes(), shift)
            plan = net.plan(params)
            phases = Phases(net.feature_map, plan, params, net.tissue_px)
            self._prepared[shifted] = params, plan, phases
        return self._prepared[shifted]


def _batch_keys(key, step, weight):
    """Keys of the augmentation of each slide, and of its dropout."""
    return halves(slide_keys(jax.random.fold_in(key, step), len(weight)))


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)
