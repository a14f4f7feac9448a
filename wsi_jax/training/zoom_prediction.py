"""Predictions of a slide of which some tiles are zoomed into, by any strategy."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from wsi_jax.ops import zoom_env
from wsi_jax.ops.episode import TwoLevelSlides
from wsi_jax.ops.zoom_strategies import Strategy, rollout
from wsi_jax.training.flops import count_flops
from wsi_jax.types import Bag, Params, Prediction


@dataclasses.dataclass(frozen=True)
class ZoomPrediction:
    """Predictions from features of tiles and of their children (`TwoLevelFeatures`).

    Attributes:
        nets: rows [*m d] -> the nets for them, as `nets.sasha.ZoomNets`.
        share: share of the tiles zoomed into, unless a strategy has its own.
        children: children to a side of a tile.
        chunk: rows updated at a time.
        states: states of an episode classified at a time.
    """

    nets: Callable
    rules: zoom_env.Rules
    share: float
    children: int
    chunk: int
    states: int

    def slides(
        self, params: Params, batch: Bag, share: float | None = None
    ) -> tuple[TwoLevelSlides, int]:
        """Slides to zoom into, and the greatest number of zooms in any."""
        share = self.share if share is None else share
        rows = self.nets(batch.x.low).rows(params, batch.x)
        steps = zoom_env.horizon(share, batch.mask.sum(-1))
        most = max(1, math.ceil(zoom_env.as_ratio(share) * batch.mask.shape[1]))
        return TwoLevelSlides.of(*rows, batch.mask, steps), most

    def by(
        self, strategy: Strategy, params: Params, batch: Bag, key, act: Callable
    ) -> Prediction:
        """The prediction by a strategy.

        Args:
            key: of tiles chosen at random.
            act: (params, rows [*m d]) -> logits [*m] of zooming into their tiles.
        """
        share = self.share if strategy.share is None else strategy.share
        if share in (0, 1):
            return self._unzoomed(params, batch, high=share == 1)
        nets = self.nets(batch.x.low)
        slides, steps = self.slides(params, batch, share)
        updater = nets.row_updater(params)
        logits, scores = lambda x: act(params, x), lambda x: nets.row_logits(params, x)
        played = rollout(
            strategy, slides, updater, logits, scores, self.rules, key,
            steps=steps, chunk=self.chunk, states=self.states,
        )  # fmt: skip
        trace = {
            "order": played.order,
            "steps": slides.horizon,
            "logits": played.logits,
        }
        updated = lambda x: updater.output_layers(updater.row_terms(x))
        passes = 1 if strategy.rules(self.rules).once else slides.horizon
        counts = self._counts(
            batch, slides.horizon, scores, logits, updated, passes=passes
        )
        return Prediction(
            *nets.classify(params, played.rows, played.mask), counts, trace
        )

    def at_high(self, params: Params, batch: Bag, key=None) -> Prediction:
        """The prediction from the children of all tiles."""
        del key
        return self._unzoomed(params, batch, high=True)

    def _unzoomed(self, params, batch, high):
        """The prediction from all tiles at one resolution."""
        nets = self.nets(batch.x.low)
        rows = nets.rows(params, batch.x)
        output = nets.classify(params, rows.high if high else rows.low, batch.mask)
        zooms = high * batch.mask.sum(-1)
        counts = self._counts(batch, zooms, lambda x: nets.row_logits(params, x))
        return Prediction(*output, counts)

    def _counts(self, batch, zooms, *per_row, passes=1):
        """Tiles read, and FLOPs where each function takes every row `passes` times."""
        row = jax.ShapeDtypeStruct((1, batch.x.low.shape[-1]), jnp.float32)
        each, tiles = sum(count_flops(f, row) for f in per_row), batch.mask.sum(-1)
        return {
            "tiles": tiles + self.children**2 * zooms,
            "flops": tiles.astype(jnp.float32) * each * passes,
        }
