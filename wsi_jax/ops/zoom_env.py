"""SASHA's environment: a slide at low resolution, whose tiles are zoomed into.

The state of a slide is a row of `d` features for each of `n` tiles. A zoom into a tile
replaces its row by that of its children at high resolution, and updates similar rows,
once each. Callers vmap over slides. SASHA (arXiv:2507.05077).

This is the reference, at the cost of all rows at every step; `ops.episode` plays the
same episodes at the cost of the rows that change.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, Num, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules by which a zoom changes the rows of other tiles.

    Attributes:
        tau: least cosine between the rows of similar tiles.
        once: whether a row is updated only at the first zoom into a similar tile; else
            at each, until its own tile is zoomed into.
        signed: whether opposite rows are dissimilar; else the cosine's size counts.
        freeze: whether zooms change nothing more once no row is left to update.
    """

    tau: float = 0.95
    once: bool = True
    signed: bool = True
    freeze: bool = False


class ZoomState(NamedTuple):
    """State of a slide in an episode.

    Attributes:
        rows: [n d], current row of each tile; 0 behind the mask.
        visited: [n], True for tiles that were zoomed into.
        eligible: [n], True for rows that may still be updated.
        step: number of steps taken.
        horizon: number of steps after which nothing changes.
    """

    rows: Float[Array, "n d"]
    mask: Bool[Array, " n"]
    visited: Bool[Array, " n"]
    eligible: Bool[Array, " n"]
    step: Int32[Array, ""]
    horizon: Int[Array, ""]


def as_ratio(fraction: float) -> Fraction:
    """The ratio of small integers that a decimal fraction stands for: 3/20 for 0.15.

    Of denominators up to 46,340, whose square is the largest below 2**31.
    """
    return Fraction(fraction).limit_denominator(46_340)


def horizon(fraction: float, count: Int[Array, "*b"] | int) -> Int32[Array, "*b"]:
    """Number of steps that zoom into a fraction of `count` tiles, 1 to `count`.

    Rounded up, exactly: `as_ratio(fraction) * count` in integers of 32 bits.
    """
    share, count = as_ratio(fraction), jnp.asarray(count, jnp.int32)
    whole, rest = jnp.divmod(count, share.denominator)
    # The negative of a floor is a ceiling.
    steps = whole * share.numerator - -rest * share.numerator // share.denominator
    return jnp.minimum(jnp.maximum(steps, 1), count)


def reset(
    z: Num[Array, "n d"], mask: Bool[Array, " n"], horizon: Int[Array, ""] | int
) -> ZoomState:
    """State before the first step: the rows at low resolution, z."""
    wide = jnp.promote_types(z.dtype, jnp.float32)
    return ZoomState(
        rows=jnp.where(mask[:, None], z, 0).astype(wide),
        mask=mask,
        visited=jnp.zeros_like(mask),
        eligible=mask,
        step=jnp.int32(0),
        horizon=jnp.asarray(horizon),
    )


def unit_rows(rows: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Rows scaled to length 1, so that products are cosines; zero rows stay zero."""
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-8)


def step(
    state: ZoomState,
    action: Int[Array, ""],
    v: Float[Array, " d"],
    update: Callable,
    rules: Rules,
) -> tuple[ZoomState, Bool[Array, " n"]]:
    """Zooms into one tile.

    Args:
        update: (v [d], z [d], rows [n d]) -> updated rows [n d], after a zoom into a
            similar tile turned its row from z into v.

    Returns:
        The state after the step; which rows were updated, the tile's own left out.
    """
    live = state.step < state.horizon
    moves = live & state.eligible.any() if rules.freeze else live
    chosen = jnp.arange(len(state.mask)) == action
    z = state.rows[action]
    # At full precision, for tiles are alike or not: there is nothing in between.
    cos = jnp.matmul(unit_rows(state.rows), unit_rows(z), precision="highest")
    similar = (cos if rules.signed else jnp.abs(cos)) >= rules.tau
    changed = similar & state.eligible & ~chosen & moves
    rows = jnp.where(changed[:, None], update(v, z, state.rows), state.rows)
    rows = jnp.where((chosen & moves)[:, None], v[None], rows)
    # The tile itself, by name: a row of zeros is not similar to itself.
    gone = chosen | similar if rules.once else chosen
    after = state._replace(
        rows=rows,
        visited=state.visited | (chosen & live),
        eligible=state.eligible & ~(gone & moves),
        step=state.step + live,
    )
    return after, changed


def play_steps(
    state: ZoomState,
    v: Float[Array, "n d"],
    update: Callable,
    policy: Callable,
    rules: Rules,
    steps: int,
    observe: Callable = lambda rows: rows,
) -> tuple[ZoomState, tuple[Int[Array, " t"], PyTree]]:
    """Plays `steps` steps of an episode.

    Args:
        policy: (step, rows [n d], allowed [n]) -> index of the tile to zoom into.
        steps: number of steps; those behind the state's horizon change nothing.
        observe: rows [n d] -> what is kept of each state.
    """

    def one(state, _):
        action = policy(state.step, state.rows, state.mask & ~state.visited)
        after, _ = step(state, action, v[action], update, rules)
        return after, (action, observe(state.rows))

    return lax.scan(one, state, length=steps)
