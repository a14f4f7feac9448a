"""A streamable net on whole slides on disk, one by one, on the devices at hand."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wsi_jax.ops.stream_plan import StreamPlan
from wsi_jax.training.compile import compile_phase
from wsi_jax.training.flops import count_flops
from wsi_jax.training.mapped_slide import MappedSlide, Pooling
from wsi_jax.training.memory_estimate import memory_estimate
from wsi_jax.training.phases import Phases
from wsi_jax.training.streamable import Streamable
from wsi_jax.training.tile_passes import Route
from wsi_jax.types import Prediction


def _go_on() -> None:
    """Nothing has failed."""


class StreamedNet:
    """Maps and predictions of slides, where the parameters lie.

    On one device its tiles are computed there. Where the parameters lie on several,
    the tiles of a slide are split over them.

    Args:
        net: the net.
        flag: flag of its config, for messages.
    """

    def __init__(self, net: Streamable, flag: str):
        self.net, self._flag = net, flag
        self._prepared, self._phases, self._flops = {}, {}, {}
        self._lock = threading.Lock()
        self._pooling = Pooling.of(net.pool, net.pool_map)
        self._predict = compile_phase(net.predict)

    def map(
        self,
        params: Any,
        slide: Any,
        check: Callable[[], None] = _go_on,
        turn: int = 0,
        shift: Any = None,
        keep: bool = True,
    ) -> MappedSlide:
        """A slide after the forward pass.

        Args:
            params: of trunk and head, on a device or on several.
            slide: the slide.
            check: is called before every tile; what it raises ends the pass.
            turn: how the slide is turned.
            shift: of its colours; None for none.
            keep: keep the seams, for gradients.
        """
        phases = self._phases_on(_place(params), shift is not None)
        route, tissue = self._route(phases.plan, slide, turn, check)
        params = self.net.trunk_input(params, shift)
        return MappedSlide(self._pooling, phases, params, route, tissue, keep)

    def predict(self, params: Any, slide: Any, check: Callable = _go_on) -> dict:
        """`logits` [c], `attention` [n] and `flops` of a slide; `check` as in `map`."""
        mapped = self.map(params, slide, check, keep=False)
        x, mask = mapped.bag()
        logits, attention = jax.device_get(self._predict(params["head"], x, mask))
        if x.shape not in self._flops:
            work = count_flops(self.net.predict, params["head"], x, mask)
            self._flops[x.shape] = work
        flops = float(mapped.flops() + self._flops[x.shape])
        attention = attention[0, : len(mapped.yx)]
        return {"logits": logits[0], "attention": attention, "flops": flops}

    def predict_by_tiles(self, params, batch, key) -> Prediction:
        """The prediction of a batch, slide by slide, on all devices with parameters."""
        del key
        return as_batch([self.predict(params, slide) for slide in batch.x])

    def work(self, slide: Any) -> int:
        """Tiles that are computed of a slide."""
        return int(self._route(self.plan, slide, 0)[0].computed().sum())

    @property
    def plan(self) -> StreamPlan:
        """Plan of the tiles on one device."""
        return self._prepare(False)[1]

    def memory_estimate(self, slides: Iterable) -> str:
        """Memory and work of a step on that of some slides of which most is computed.

        Raises:
            TileError: more than the device has.
        """
        net = self.net
        params, plan, _ = self._prepare(net.shifts_colours)
        phases = self._phases_on(jax.local_devices()[0], net.shifts_colours)
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
        mapped = self.map(params, slide)
        x, mask = map(jnp.asarray, mapped.bag())
        logit = lambda x: self.net.predict(params["head"], x, mask)[0][0, label]
        for at, grad in mapped.to_pixels(compile_phase(jax.grad(logit))(x)):
            yield at, grad[0]

    def _phases_on(self, place: jax.Device | Mesh, shifted: bool):
        """The phases on a device, or for tiles split over some; compiled once."""
        which = shifted, place
        with self._lock:
            if which not in self._phases:
                self._phases[which] = self._prepare(shifted)[2].on(place)
            return self._phases[which]

    def _route(self, plan, slide, turn, check=_go_on):
        """The tiles of a turned slide, and its tissue; `check()` may end it early."""
        tissue = slide.tissue(turn)
        if not tissue.any():  # slivers at the edge may be lost in turning
            turn, tissue = 0, slide.tissue()
        size = slide.rotated_shape(turn)
        positions, field = self.net.required(plan, tissue, size)
        needed = None if positions is None else plan.tiles_for_cells(positions, size)
        needed = needed if field is None else plan.tiles_on_tissue(field, size)

        def read(order):
            for tile in slide.tiles(order, plan.tile_px, turn):
                check()
                yield tile

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


def as_batch(slides: Sequence[dict]) -> Prediction:
    """What was predicted of each slide, as a batch."""
    names = "logits", "attention", "flops"
    logits, attention, flops = ([one[name] for one in slides] for name in names)
    longest = max(map(len, attention))
    padded = [np.pad(a, (0, longest - len(a))) for a in attention]
    counts = {"tiles": np.array(list(map(len, attention))), "flops": np.array(flops)}
    return Prediction(np.stack(logits), np.stack(padded), counts)


def _place(params: Any) -> jax.Device | Mesh:
    """The device on which parameters lie, or the mesh of several."""
    sharding = jax.tree.leaves(params)[0].sharding
    if len(sharding.device_set) > 1:
        return sharding.mesh
    (device,) = sharding.device_set
    return device
