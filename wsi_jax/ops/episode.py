"""Episodes of SASHA's environment, at the cost of the rows that change.

Where a row is updated once at most, a tile has three different rows in an episode: at
low resolution, as estimated after a zoom into a similar tile, and at high resolution.
Two step numbers tell when one took the place of the other, and a function of a row is
computed three times, not at every step (`ops.episode_states`).

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
from wsi_jax.ops.zoom_env import Rules, unit_rows


class TwoLevelSlides(NamedTuple):
    """Slides of one padded size, at both resolutions.

    Attributes:
        z: [b n d], rows at low resolution.
        v: [b n d], rows at high resolution, aggregated from the tiles' children.
        mask: [b n], True where there is a tile; what lies behind it has no effect.
        horizon: [b], number of steps of an episode.
    """

    z: Float[Array, "b n d"]
    v: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    horizon: Int[Array, " b"]

    @classmethod
    def of(cls, z, v, mask, horizon) -> "TwoLevelSlides":
        """Slides at least in float32, with zeros behind the mask."""
        wide = jnp.promote_types(z.dtype, jnp.float32)
        clean = lambda rows: jnp.where(mask[..., None], rows, 0).astype(wide)
        return cls(clean(z), clean(v), mask, horizon)


class RowUpdater(NamedTuple):
    """An updater of rows in parts: `output_layers(zoom_terms(v, z) + row_terms(s))`.

    Attributes:
        zoom_terms: (v [*m d], z [*m d]) -> [*m h], terms of the tile zoomed into.
        row_terms: s [*m d] -> [*m h], terms of the row to update.
        output_layers: [*m h] -> updated rows [*m d].
    """

    zoom_terms: Callable
    row_terms: Callable
    output_layers: Callable

    @classmethod
    def from_module(cls, updater, params: PyTree) -> "RowUpdater":
        """The updater of a module, `nets.policy.Updater`, and its parameters."""
        part = lambda name: functools.partial(updater.apply, params, method=name)
        return cls(*map(part, cls._fields))


class Episode(NamedTuple):
    """Record of episodes; step number `t` stands for never.

    Attributes:
        actions: tiles zoomed into; arbitrary from the slide's horizon on.
        estimated: rows as estimated; 0 where none was.
    """

    actions: Int32[Array, "b e t"]
    estimated: Float[Array, "b e n d"]
    estimate_step: Int32[Array, "b e n"]
    zoom_step: Int32[Array, "b e n"]


def greedy(step: Int[Array, ""], log_p: Float[Array, "b e n"]) -> Int32[Array, "b e"]:
    """Chooses the most likely tile, the first of equals."""
    del step
    return log_p.argmax(-1).astype(jnp.int32)


def sampler(keys: Key[Array, "b e"]) -> Callable:
    """A choice for `play` that samples tiles, with a key for each episode."""

    def sample(step, log_p):
        def one(key, log_p):
            noise = jax.random.gumbel(jax.random.fold_in(key, step), log_p.shape)
            return (log_p + noise.astype(log_p.dtype)).argmax().astype(jnp.int32)

        return jax.vmap(jax.vmap(one))(keys, log_p)

    return sample


def play(
    slides: TwoLevelSlides,
    updater: RowUpdater,
    act: Callable,
    choose: Callable,
    rules: Rules,
    *,
    steps: int,
    episodes: int,
    chunk: int,
) -> Episode:
    """Plays `episodes` episodes on each slide, side by side.

    A row that may still be updated is at low resolution: its part of the updater's
    first layer is known beforehand. Rows that change, of all episodes together, are
    gathered and updated `chunk` at a time.

    Args:
        act: rows [*m d] -> logits [*m] of zooming into their tiles.
        choose: (step, log-probabilities [b e n]) -> tiles [b e]; -inf where masked or
            zoomed into before, which must not be chosen.
        steps: the longest horizon.
        chunk: rows updated at a time.

    Raises:
        ValueError: rules that only `ops.zoom_env.play_steps` follows.
    """
    if rules.freeze or not rules.once:
        raise ValueError(f"{rules}: only ops.zoom_env.play_steps follows them")
    shape = len(slides.z), episodes, slides.z.shape[1]
    zoom = _zoom(slides, updater, act, rules, steps, chunk)

    def one(carry, step):
        logits, episode = carry
        allowed = slides.mask[:, None] & (episode.zoom_step == steps)
        log_p = jax.vmap(jax.vmap(log_attention))(logits, allowed)
        action = choose(step, log_p)
        return zoom(step, action, allowed, logits, episode), action

    never = jnp.full(shape, steps, jnp.int32)
    every = lambda a: jnp.broadcast_to(a[:, None], (*shape[:2], *a.shape[1:]))
    start = Episode(None, jnp.zeros_like(every(slides.z)), never, never)
    count = jnp.arange(steps, dtype=jnp.int32)
    (_, episode), actions = lax.scan(one, (every(act(slides.z)), start), count)
    return episode._replace(actions=jnp.moveaxis(actions, 0, -1))


def _zoom(slides, updater, act, rules, steps, chunk):
    """A function that zooms into one tile of each episode; see `play`."""
    z, v = slides.z, slides.v
    units, row_terms = unit_rows(z), updater.row_terms(z)
    tiles = jnp.arange(z.shape[1])[None, None]
    take = jax.vmap(lambda rows, action: rows[action])

    def zoom(step, action, allowed, logits, episode):
        was_estimated = jax.vmap(take)(episode.estimate_step, action) < steps
        estimate = jax.vmap(take)(episode.estimated, action)
        row = jnp.where(was_estimated[..., None], estimate, take(z, action))
        # At full precision, as in ops.zoom_env.
        cos = jnp.einsum("bed,bnd->ben", unit_rows(row), units, precision="highest")
        similar = (cos if rules.signed else jnp.abs(cos)) >= rules.tau
        live = (step < slides.horizon)[:, None, None]
        chosen = (tiles == action[..., None]) & live
        eligible = allowed & (episode.estimate_step == steps)
        changed = similar & eligible & ~chosen & live
        terms = updater.zoom_terms(take(v, action), row), row_terms
        rows, logits = _update_rows(
            changed, episode.estimated, logits, terms, updater, act, chunk
        )
        return logits, episode._replace(
            estimated=rows,
            estimate_step=jnp.where(changed, step, episode.estimate_step),
            zoom_step=jnp.where(chosen, step, episode.zoom_step),
        )

    return zoom


def _update_rows(changed, rows, logits, terms, updater, act, chunk):
    """Rows [b e n d] and their logits [b e n], updated where `changed` [b e n] is set.

    `terms` are those of the zooms [b e h] and of the rows [b n h].
    """
    ordinal = jnp.cumsum(changed.reshape(-1), dtype=jnp.int32)
    _, episodes, n = changed.shape
    zoom_terms, row_terms = (a.reshape(-1, a.shape[-1]) for a in terms)

    def update_chunk(carry):
        done, rows, logits = carry
        # Behind the last changed row: read from anywhere, written nowhere.
        at = jnp.searchsorted(ordinal, done + 1 + jnp.arange(chunk))
        episode, tile = at // n, at % n
        hidden = zoom_terms[episode] + row_terms[episode // episodes * n + tile]
        new = updater.output_layers(hidden)
        write = lambda old, new: old.at[at].set(new.astype(old.dtype), mode="drop")
        return done + chunk, write(rows, new), write(logits, act(new))

    flat = jnp.int32(0), rows.reshape(-1, rows.shape[-1]), logits.reshape(-1)
    carry = lax.while_loop(lambda c: c[0] < ordinal[-1], update_chunk, flat)
    return carry[1].reshape(rows.shape), carry[2].reshape(changed.shape)
