"""A policy zooming where children are read only when it zooms into their tile."""

from collections.abc import Callable

import jax

from wsi_jax.nets.sasha import ZoomNets
from wsi_jax.ops import zoom_env
from wsi_jax.ops.sampling import log_attention
from wsi_jax.types import Zoomer


def zoomer(
    nets: Callable[..., ZoomNets], share: float, rules: zoom_env.Rules
) -> Zoomer:
    """The verdict by the policy's own way, one step at a time.

    Args:
        nets: (rows [*m d]) -> the nets for such rows.
        share: of the tiles zoomed into.
        rules: of the environment.
    """

    def begin(params, low, mask):
        low = nets(low).standardised(params, low)
        return jax.vmap(zoom_env.reset)(
            low, mask, zoom_env.horizon(share, mask.sum(-1))
        )

    def log_probs(params, state):
        left = state.mask & ~state.visited & (state.step < state.horizon)[:, None]
        logits = nets(state.rows).act(params, state.rows)
        return jax.vmap(log_attention)(logits, left)

    def step(params, state, tile, children):
        mine = nets(state.rows)
        update = lambda *x: mine.updater.apply(params["updater"], *x)
        move = lambda *x: zoom_env.step(*x, update, rules)[0]
        return jax.vmap(move)(state, tile, mine.aggregate(params, children))

    def end(params, state):
        return nets(state.rows).classify(params, state.rows, state.mask)

    return Zoomer(begin, log_probs, step, end)
