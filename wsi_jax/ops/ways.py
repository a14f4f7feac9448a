"""Ways to zoom: those that a policy chooses, and what they are held against."""

import dataclasses
import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from wsi_jax.ops.episode import Episode, Slides, Update, greedy, play
from wsi_jax.ops.zoom import Rules


class Choice(enum.Enum):
    """Which tiles are zoomed into.

    policy: one after another, those that the policy likes best.
    random: any.
    grid: evenly spread, row by row.
    low: those with the most attention when all are seen at low resolution.
    full: those with the most when all are seen at high resolution: an oracle.
    """

    policy = "policy"
    random = "random"
    grid = "grid"
    low = "low"
    full = "full"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """How a verdict is come by.

    Attributes:
        choice: of the tiles.
        tau: from which cosine on rows are updated; None as trained.
        zoomed_only: the verdict rests on the tiles that were zoomed into.
        share: of the tiles zoomed into; None as trained.
    """

    choice: Choice = Choice.policy
    tau: float | None = None
    zoomed_only: bool = False
    share: float | None = None


NEVER, EVERY = 2.0, -2.0  # cosines that no two rows have, and that all have
WAYS = {
    "random": Way(choice=Choice.random),
    "grid": Way(choice=Choice.grid),
    "low_attention": Way(choice=Choice.low),
    "oracle": Way(choice=Choice.full),
    "zoomed_only": Way(zoomed_only=True),
    "no_update": Way(tau=NEVER),
    "all_updated": Way(tau=EVERY),
    "low_resolution": Way(share=0.0),
    "full_resolution": Way(share=1.0),
}


class Known(NamedTuple):
    """What is known of slides once they were zoomed into.

    Attributes:
        episode: by which it came about, one for each slide.
        rows: of the tiles.
        mask: of the tiles on which the verdict rests.
    """

    episode: Episode
    rows: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]


def follow(
    way: Way,
    slides: Slides,
    update: Update,
    act: Callable,
    attend: Callable,
    rules: Rules,
    key: Key[Array, ""],
    *,
    steps: int,
    chunk: int,
) -> Known:
    """Zooms into slides one way.

    Args:
        way: to zoom.
        slides: of which all is known.
        update: of rows.
        act: rows [*m d] -> logits [*m] of zooming into their tiles.
        attend: (rows [b n d], mask [b n]) -> attention [b n] of the verdict.
        rules: as trained.
        key: of tiles chosen at random.
        steps: the longest horizon.
        chunk: rows updated at a time.
    """
    scores = {
        Choice.random: lambda: jax.random.uniform(key, slides.mask.shape),
        Choice.grid: lambda: jax.vmap(evenly)(slides.mask, slides.horizon),
        Choice.low: lambda: attend(slides.z, slides.mask),
        Choice.full: lambda: attend(slides.v, slides.mask),
    }
    choose = greedy
    if way.choice is not Choice.policy:
        choose = ranked(scores[way.choice]()[:, None])
    if way.tau is not None:
        rules = dataclasses.replace(rules, tau=way.tau)
    how = {"steps": steps, "episodes": 1, "chunk": chunk}
    episode = play(slides, update, act, choose, rules, **how)
    estimated, zoomed = (
        at[:, 0] < steps for at in (episode.estimated_at, episode.zoomed_at)
    )
    rows = jnp.where(estimated[..., None], episode.estimated[:, 0], slides.z)
    rows = jnp.where(zoomed[..., None], slides.v, rows)
    return Known(episode, rows, zoomed if way.zoomed_only else slides.mask)


def ranked(scores: Float[Array, "*b n"]) -> Callable:
    """A choice for `ops.episode.play`: the greatest score of those that are left."""

    def choose(step, log_p):
        del step
        left = jnp.isfinite(log_p)
        return jnp.where(left, scores, -jnp.inf).argmax(-1).astype(jnp.int32)

    return choose


def evenly(mask: Bool[Array, " n"], steps: Int[Array, ""]) -> Float[Array, " n"]:
    """Scores by which `steps` tiles are ranked first that lie evenly among the masked.

    Tiles come row by row: among all of a slide they lie as on a slanted grid.
    """
    place = jnp.cumsum(mask) - 1
    count = jnp.maximum(mask.sum(), 1)
    # Of `count` places those at which the share of the steps passes a whole number.
    passes = lambda i: i * steps // count
    return (mask & (passes(place + 1) > passes(place))).astype(jnp.float32)
