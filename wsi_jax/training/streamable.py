"""What a net gives to be trained by streaming: a trunk and a head, as functions."""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from wsi_jax.ops.stream_plan import StreamPlan


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
