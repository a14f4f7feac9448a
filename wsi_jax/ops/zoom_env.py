"""The zoom environment: a slide at low resolution, of which some tiles are seen closer.

Of one slide: a row of `d` features for each of `n` tiles. To zoom into a tile is to
replace its row by what its children at high resolution say, and to update the rows that
are like it, once each. Callers vmap over slides. SASHA (arXiv:2507.05077).

This is the environment word for word, at the cost of all rows at every step;
`ops.episode` plays the same episodes at the cost of the rows that change.
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
    """What zooming does to the other tiles.

    Attributes:
        tau: cosine from which on tiles are alike.
        once: a row is updated when a tile like it is first zoomed into, and then no
            more; else whenever there is one, until it is zoomed into itself.
        signed: opposite rows are unlike; else their cosine's size counts.
        freeze: once no row is left to update, zooming changes nothing more.
    """

    tau: float = 0.95
    once: bool = True
    signed: bool = True
    freeze: bool = False


class Zoom(NamedTuple):
    """A slide that is being looked at.

    Attributes:
        rows: [n d], as each tile is known by now; 0 behind the mask.
        mask: [n], True where there is a tile.
        visited: [n], which tiles were zoomed into.
        eligible: [n], which rows may still be updated.
        step: steps taken.
        horizon: steps after which nothing changes any more.
    """

    rows: Float[Array, "n d"]
    mask: Bool[Array, " n"]
    visited: Bool[Array, " n"]
    eligible: Bool[Array, " n"]
    step: Int32[Array, ""]
    horizon: Int[Array, ""]


def ratio(fraction: float) -> Fraction:
    """The ratio of small integers that a decimal fraction stands for: 3/20 for 0.15.

    Of denominators up to 46,340, whose square is the largest below 2**31.
    """
    return Fraction(fraction).limit_denominator(46_340)


def horizon(fraction: float, count: Int[Array, "*b"] | int) -> Int32[Array, "*b"]:
    """Steps to zoom into that fraction of the tiles: one or more, of as many as are.

    Rounded up, exactly: `ratio(fraction) * count` in integers of 32 bits.
    """
    share, count = ratio(fraction), jnp.asarray(count, jnp.int32)
    whole, rest = jnp.divmod(count, share.denominator)
    # The negative of a floor is a ceiling.
    steps = whole * share.numerator - -rest * share.numerator // share.denominator
    return jnp.minimum(jnp.maximum(steps, 1), count)


def reset(
    z: Num[Array, "n d"], mask: Bool[Array, " n"], horizon: Int[Array, ""] | int
) -> Zoom:
    """A slide before the first step: each tile as at low resolution."""
    wide = jnp.promote_types(z.dtype, jnp.float32)
    return Zoom(
        rows=jnp.where(mask[:, None], z, 0).astype(wide),
        mask=mask,
        visited=jnp.zeros_like(mask),
        eligible=mask,
        step=jnp.int32(0),
        horizon=jnp.asarray(horizon),
    )


def unit(rows: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Rows of length 1, whose products are cosines; a row of zeros stays one."""
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-8)


def step(
    state: Zoom,
    action: Int[Array, ""],
    v: Float[Array, " d"],
    update: Callable,
    rules: Rules,
) -> tuple[Zoom, Bool[Array, " n"]]:
    """Zooms into one tile; also tells which rows were updated, the tile's own aside.

    Args:
        state: before the step.
        action: the tile.
        v: its row at high resolution.
        update: (v [d], z [d], rows [n d]) -> [n d], the rows once it is known that a
            tile like them, which was z, is v.
        rules: of the environment.
    """
    live = state.step < state.horizon
    moves = live & state.eligible.any() if rules.freeze else live
    zoomed = jnp.arange(len(state.mask)) == action
    z = state.rows[action]
    # At full precision, for tiles are alike or not: there is nothing in between.
    cos = jnp.matmul(unit(state.rows), unit(z), precision="highest")
    similar = (cos if rules.signed else jnp.abs(cos)) >= rules.tau
    changed = similar & state.eligible & ~zoomed & moves
    rows = jnp.where(changed[:, None], update(v, z, state.rows), state.rows)
    rows = jnp.where((zoomed & moves)[:, None], v[None], rows)
    # The tile itself, by name: a row of zeros is not similar to itself.
    gone = zoomed | similar if rules.once else zoomed
    after = state._replace(
        rows=rows,
        visited=state.visited | (zoomed & live),
        eligible=state.eligible & ~(gone & moves),
        step=state.step + live,
    )
    return after, changed


def walk(
    state: Zoom,
    v: Float[Array, "n d"],
    update: Callable,
    policy: Callable,
    rules: Rules,
    steps: int,
    see: Callable = lambda rows: rows,
) -> tuple[Zoom, tuple[Int[Array, " t"], PyTree]]:
    """Plays `steps` steps of an episode.

    Args:
        state: before the first.
        v: each tile at high resolution.
        update: of rows, as for `step`.
        policy: (step, rows [n d], allowed [n]) -> the tile to zoom into.
        rules: of the environment.
        steps: more than the state's horizon change nothing.
        see: rows [n d] -> what is kept of each state.

    Returns:
        The last state; the tiles zoomed into; what was seen before each step.
    """

    def one(state, _):
        action = policy(state.step, state.rows, state.mask & ~state.visited)
        after, _ = step(state, action, v[action], update, rules)
        return after, (action, see(state.rows))

    return lax.scan(one, state, length=steps)
