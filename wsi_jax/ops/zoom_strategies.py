"""Ways to zoom: those that a policy chooses, and what they are held against."""

import dataclasses
import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from wsi_jax.ops.episode import Slides, Update, greedy, play
from wsi_jax.ops.episode_states import verdicts
from wsi_jax.ops.multi_branch_attention import mean_attention
from wsi_jax.ops.zoom_env import Rules, reset, walk


class Choice(enum.Enum):
    """Which tiles are zoomed into.

    policy: one after another, those that the policy likes best.
    at_once: those that it likes best when all are seen at low resolution.
    random: any.
    grid: evenly spread, row by row.
    low: those with the most attention when all are seen at low resolution.
    full: those with the most when all are seen at high resolution: an oracle.
    """

    policy = "policy"
    at_once = "at_once"
    random = "random"
    grid = "grid"
    low = "low"
    full = "full"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a verdict is come by.

    Attributes:
        choice: of the tiles.
        tau: from which cosine on rows are updated; None as trained.
        once: whether a row is updated once at most; None as trained.
        zoomed_only: the verdict rests on the tiles that were zoomed into.
        share: of the tiles zoomed into; None as trained.
    """

    choice: Choice = Choice.policy
    tau: float | None = None
    once: bool | None = None
    zoomed_only: bool = False
    share: float | None = None

    def rules(self, trained: Rules) -> Rules:
        """Of the environment, where the way has none of its own as `trained`."""
        own = {"tau": self.tau, "once": self.once}
        own = {name: value for name, value in own.items() if value is not None}
        return dataclasses.replace(trained, **own)


NEVER, EVERY = 2.0, -2.0  # cosines that no two rows have, and that all have
STRATEGIES = {
    "random": Strategy(choice=Choice.random),
    "grid": Strategy(choice=Choice.grid),
    "low_attention": Strategy(choice=Choice.low),
    "oracle": Strategy(choice=Choice.full),
    "zoomed_only": Strategy(zoomed_only=True),
    "no_update": Strategy(tau=NEVER),
    # The global update: each zoom updates every row that was not zoomed into, again.
    "all_updated": Strategy(tau=EVERY, once=False),
    "low_resolution": Strategy(share=0.0),
    "full_resolution": Strategy(share=1.0),
}
AT_ONCE = Strategy(choice=Choice.at_once)


class Known(NamedTuple):
    """What is known of slides once they were zoomed into.

    Attributes:
        order: tiles zoomed into; anything once the slide's horizon is reached.
        rows: of the tiles.
        mask: of the tiles on which the verdict rests.
        logits: of all tiles, before the first step and after each.
    """

    order: Int32[Array, "b t"]
    rows: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    logits: Float[Array, "b u c"]


def follow(
    way: Strategy,
    slides: Slides,
    update: Update,
    act: Callable,
    read: Callable,
    rules: Rules,
    key: Key[Array, ""],
    *,
    steps: int,
    chunk: int,
    states: int,
) -> Known:
    """Zooms into slides one way.

    Args:
        way: to zoom.
        slides: of which all is known.
        update: of rows.
        act: rows [*m d] -> logits [*m] of zooming into their tiles.
        read: rows [*m d] -> (scores [*m k] of the verdict's k attentions, whose mean
            counts, values [*m c]).
        rules: as trained.
        key: of tiles chosen at random.
        steps: the longest horizon.
        chunk: rows updated at a time.
        states: judged at a time.
    """
    attend = jax.vmap(lambda x, mask: mean_attention(read(x)[0], mask))
    of = {
        Choice.policy: lambda: None,
        Choice.at_once: lambda: act(slides.z),
        Choice.random: lambda: jax.random.uniform(key, slides.mask.shape),
        Choice.grid: lambda: jax.vmap(evenly)(slides.mask, slides.horizon),
        Choice.low: lambda: attend(slides.z, slides.mask),
        Choice.full: lambda: attend(slides.v, slides.mask),
    }
    scores, rules = of[way.choice](), way.rules(rules)
    of_all = slides, update, act, read, rules, scores, steps
    found = _played(*of_all, chunk, states) if rules.once else _walked(*of_all)
    order, rows, zoomed, logits = found
    mask = zoomed if way.zoomed_only else slides.mask
    return Known(order, rows, mask, logits)


def _played(slides, update, act, read, rules, scores, steps, chunk, states):
    """(order, rows, which were zoomed into, logits), at the cost of what changes."""
    choose = greedy if scores is None else ranked(scores[:, None])
    how = {"steps": steps, "episodes": 1, "chunk": chunk}
    episode = play(slides, update, act, choose, rules, **how)
    estimated, zoomed = (
        at[:, 0] < steps for at in (episode.estimated_at, episode.zoomed_at)
    )
    rows = jnp.where(estimated[..., None], episode.estimated[:, 0], slides.z)
    rows = jnp.where(zoomed[..., None], slides.v, rows)
    logits = verdicts(read, slides, episode, steps=steps + 1, chunk=states)
    return episode.actions[:, 0], rows, zoomed, logits[:, 0]


def _walked(slides, update, act, read, rules, scores, steps):
    """The same where rows change more often, at the cost of all rows at each step."""

    def renew(v, z, rows):
        return update.finish(update.zoomed(v, z)[None] + update.row(rows))

    def judge(rows, mask):
        weights, values = read(rows)
        return mean_attention(weights, mask) @ values

    def one(slide, scores):
        def choose(step, rows, allowed):
            del step
            likes = act(rows) if scores is None else scores
            return jnp.where(allowed, likes, -jnp.inf).argmax().astype(jnp.int32)

        first = reset(slide.z, slide.mask, slide.horizon)
        see = lambda rows: judge(rows, slide.mask)
        last, (order, seen) = walk(first, slide.v, renew, choose, rules, steps, see)
        logits = jnp.concatenate([seen, see(last.rows)[None]])
        return order, last.rows, last.visited, logits

    return jax.vmap(one)(slides, scores)


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
