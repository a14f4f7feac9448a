"""Whole episodes of zooming, at the cost of the rows that change.

Where a row is updated once at most, an episode of `t` steps on `n` tiles has not `t n`
rows but three for each tile: as seen at low resolution, as estimated when a tile like
it was zoomed into, and as zoomed into itself. Two numbers tell when one took the place
of the other. Whatever is a function of a row is computed once for each, not at every
step (`ops.versions`).

`b` slides, `e` episodes on each, `n` tiles, `t` steps.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, Key, PyTree

from wsi_jax.ops.sampling import log_attention
from wsi_jax.ops.zoom_env import Rules, unit


class Slides(NamedTuple):
    """Slides of one padded size, at both resolutions.

    Attributes:
        z: [b n d], each tile at low resolution.
        v: [b n d], as its children at high resolution say.
        mask: [b n], True where there is a tile; what lies behind it has no effect.
        horizon: [b], steps of an episode.
    """

    z: Float[Array, "b n d"]
    v: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    horizon: Int[Array, " b"]

    @classmethod
    def of(cls, z, v, mask, horizon) -> "Slides":
        """At least in float32, with zeros behind the mask."""
        wide = jnp.promote_types(z.dtype, jnp.float32)
        clean = lambda rows: jnp.where(mask[..., None], rows, 0).astype(wide)
        return cls(clean(z), clean(v), mask, horizon)


class Update(NamedTuple):
    """The update of a row in parts: `finish(zoomed(v, z) + row(s))`.

    Attributes:
        zoomed: (v [*m d], z [*m d]) -> [*m h], what the tile zoomed into adds.
        row: s [*m d] -> [*m h], what the row to be updated adds.
        finish: [*m h] -> [*m d].
    """

    zoomed: Callable
    row: Callable
    finish: Callable

    @classmethod
    def of(cls, updater, params: PyTree) -> "Update":
        """Of a module of `nets.policy`, with its parameters."""
        part = lambda name: functools.partial(updater.apply, params, method=name)
        return cls(*map(part, cls._fields))


class Episode(NamedTuple):
    """What happened; `t` stands for never.

    Attributes:
        actions: the tiles zoomed into; anything once the slide's horizon is reached.
        estimated: rows as estimated; 0 where none was.
        estimated_at: the step that estimated a row.
        zoomed_at: the step that zoomed into a tile.
    """

    actions: Int32[Array, "b e t"]
    estimated: Float[Array, "b e n d"]
    estimated_at: Int32[Array, "b e n"]
    zoomed_at: Int32[Array, "b e n"]


def greedy(step: Int[Array, ""], log_p: Float[Array, "b e n"]) -> Int32[Array, "b e"]:
    """The most likely tile, the first of equals."""
    del step
    return log_p.argmax(-1).astype(jnp.int32)


def sampler(keys: Key[Array, "b e"]) -> Callable:
    """Draws tiles by their probability, with a key for each episode."""

    def sample(step, log_p):
        def one(key, log_p):
            noise = jax.random.gumbel(jax.random.fold_in(key, step), log_p.shape)
            return (log_p + noise.astype(log_p.dtype)).argmax().astype(jnp.int32)

        return jax.vmap(jax.vmap(one))(keys, log_p)

    return sample


def play(
    slides: Slides,
    update: Update,
    act: Callable,
    choose: Callable,
    rules: Rules,
    *,
    steps: int,
    episodes: int,
    chunk: int,
) -> Episode:
    """Plays `episodes` episodes on each slide, side by side.

    A row that may still be updated is as seen at low resolution: its similarity to the
    tile zoomed into and its part of the update's first layer need no other row. Rows
    that change, of all episodes together, are gathered and updated `chunk` at a time,
    until none is left.

    Args:
        slides: of one padded size.
        update: of rows.
        act: rows [*m d] -> logits [*m] of zooming into their tiles.
        choose: (step, log-probabilities [b e n]) -> tiles [b e]; -inf where masked or
            zoomed into before, which must not be chosen.
        rules: of the environment.
        steps: the longest horizon.
        episodes: e.
        chunk: rows updated at a time.

    Raises:
        ValueError: rules by which a row changes more often, or changing depends on
            what is left; those `ops.zoom.walk` can follow.
    """
    if rules.freeze or not rules.once:
        raise ValueError(f"{rules}: only ops.zoom.walk follows them; not ops.episode")
    z, v, mask = slides.z, slides.v, slides.mask
    b, n, _ = z.shape
    wide = (b, episodes, n)
    units, hidden = unit(z), update.row(z)
    tiles = jnp.arange(n)[None, None]
    of_slide = jax.vmap(lambda rows, action: rows[action])

    def one(carry, step):
        logits, episode = carry
        allowed = mask[:, None] & (episode.zoomed_at == steps)
        log_p = jax.vmap(jax.vmap(log_attention))(logits, allowed)
        action = choose(step, log_p)
        seen, zoomed = of_slide(z, action), of_slide(v, action)
        estimated = jax.vmap(of_slide)(episode.estimated, action)
        known = jax.vmap(of_slide)(episode.estimated_at, action) < steps
        row = jnp.where(known[..., None], estimated, seen)
        # At full precision, as in ops.zoom.
        cos = jnp.einsum("bed,bnd->ben", unit(row), units, precision="highest")
        similar = (cos if rules.signed else jnp.abs(cos)) >= rules.tau
        live = (step < slides.horizon)[:, None, None]
        itself = (tiles == action[..., None]) & live
        eligible = allowed & (episode.estimated_at == steps)
        changed = similar & eligible & ~itself & live
        first = update.zoomed(zoomed, row)
        rows, logits = updated(changed, episode.estimated, logits, first)
        episode = episode._replace(
            estimated=rows,
            estimated_at=jnp.where(changed, step, episode.estimated_at),
            zoomed_at=jnp.where(itself, step, episode.zoomed_at),
        )
        return (logits, episode), action

    def updated(changed, rows, logits, first):
        """The rows that change, and their logits, written into all."""
        ordinal = jnp.cumsum(changed.reshape(-1), dtype=jnp.int32)
        shape = rows.shape

        def some(carry):
            done, rows, logits = carry
            # Behind the last there is none: read anywhere, written nowhere.
            at = jnp.searchsorted(ordinal, done + 1 + jnp.arange(chunk))
            which, tile = at // n, at % n
            h = first.reshape(b * episodes, -1)[which]
            h += hidden.reshape(b * n, -1)[which // episodes * n + tile]
            new = update.finish(h)
            write = lambda old, new: old.at[at].set(new.astype(old.dtype), mode="drop")
            return done + chunk, write(rows, new), write(logits, act(new))

        flat = jnp.int32(0), rows.reshape(-1, shape[-1]), logits.reshape(-1)
        _, rows, logits = lax.while_loop(lambda c: c[0] < ordinal[-1], some, flat)
        return rows.reshape(shape), logits.reshape(wide)

    never = jnp.full(wide, steps, jnp.int32)
    every = lambda a: jnp.broadcast_to(a[:, None], (b, episodes, *a.shape[1:]))
    start = Episode(None, jnp.zeros_like(every(z)), never, never)
    count = jnp.arange(steps, dtype=jnp.int32)
    (_, episode), actions = lax.scan(one, (every(act(z)), start), count)
    return episode._replace(actions=jnp.moveaxis(actions, 0, -1))
