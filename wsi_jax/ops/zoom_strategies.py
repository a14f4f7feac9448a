"""Strategies that choose the tiles to zoom into: the policy's, and its baselines."""

import dataclasses
import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from wsi_jax.ops.attention_weights import mean_attention
from wsi_jax.ops.episode import RowUpdater, TwoLevelSlides, greedy, play
from wsi_jax.ops.episode_states import state_logits
from wsi_jax.ops.zoom_env import Rules, play_steps, reset


class Choice(enum.Enum):
    """Rule that chooses the tiles to zoom into.

    policy: one after another, those with the greatest logit of the policy.
    at_once: those with the greatest logit when all are at low resolution.
    random: any.
    grid: evenly spaced, row by row.
    low: those with the most attention when all are at low resolution.
    full: those with the most attention when all are at high resolution: an oracle.
    """

    policy = "policy"
    at_once = "at_once"
    random = "random"
    grid = "grid"
    low = "low"
    full = "full"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """Choice of tiles to zoom into, update of rows, and choice of tiles to classify.

    Attributes:
        choice: rule that chooses the tiles.
        tau: least cosine between similar rows; None as trained.
        once: whether a row is updated once at most; None as trained.
        visited_only: whether only tiles that were zoomed into are classified.
        share: share of the tiles zoomed into; None as trained.
    """

    choice: Choice = Choice.policy
    tau: float | None = None
    once: bool | None = None
    visited_only: bool = False
    share: float | None = None

    def rules(self, trained: Rules) -> Rules:
        """Rules of the environment: `trained`, but for what the strategy sets."""
        own = {"tau": self.tau, "once": self.once}
        own = {name: value for name, value in own.items() if value is not None}
        return dataclasses.replace(trained, **own)


NEVER, ALWAYS = 2.0, -2.0  # least cosines that no two rows have, and that all have
STRATEGIES = {
    "random": Strategy(choice=Choice.random),
    "grid": Strategy(choice=Choice.grid),
    "low_attention": Strategy(choice=Choice.low),
    "oracle": Strategy(choice=Choice.full),
    "only_zoomed_tiles": Strategy(visited_only=True),
    "no_update": Strategy(tau=NEVER),
    # The global update: each zoom updates every row that was not zoomed into, again.
    "all_updated": Strategy(tau=ALWAYS, once=False),
    "low_resolution": Strategy(share=0.0),
    "full_resolution": Strategy(share=1.0),
}
AT_ONCE = Strategy(choice=Choice.at_once)


class Rollout(NamedTuple):
    """Slides after a strategy has zoomed into them.

    Attributes:
        order: tiles zoomed into; arbitrary from the slide's horizon on.
        rows: final rows of the tiles.
        mask: True for tiles to classify.
        logits: class logits of all tiles, before the first step and after each.
    """

    order: Int32[Array, "b t"]
    rows: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    logits: Float[Array, "b u c"]


def rollout(
    strategy: Strategy,
    slides: TwoLevelSlides,
    updater: RowUpdater,
    act: Callable,
    classify: Callable,
    rules: Rules,
    key: Key[Array, ""],
    *,
    steps: int,
    chunk: int,
    states: int,
) -> Rollout:
    """Zooms into slides by a strategy.

    Args:
        act: rows [*m d] -> logits [*m] of zooming into their tiles.
        classify: rows [*m d] -> (scores [*m k] of k attentions, which are averaged,
            class logits [*m c]).
        key: draws the tiles of a random choice.
        chunk: rows updated at a time.
        states: states classified at a time.
    """
    attend = jax.vmap(lambda x, mask: mean_attention(classify(x)[0], mask))
    fixed_scores = {
        Choice.policy: lambda: None,
        Choice.at_once: lambda: act(slides.z),
        Choice.random: lambda: jax.random.uniform(key, slides.mask.shape),
        Choice.grid: lambda: jax.vmap(evenly_spaced)(slides.mask, slides.horizon),
        Choice.low: lambda: attend(slides.z, slides.mask),
        Choice.full: lambda: attend(slides.v, slides.mask),
    }
    scores, rules = fixed_scores[strategy.choice](), strategy.rules(rules)
    if rules.once:
        choose = greedy if scores is None else highest_first(scores[:, None])
        episode = play(
            slides, updater, act, choose, rules, steps=steps, episodes=1, chunk=chunk
        )
        result = _last_state(slides, episode, steps)
        logits = state_logits(classify, slides, episode, steps=steps + 1, chunk=states)[
            :, 0
        ]
    else:
        result, logits = _play_in_env(
            slides, updater, act, classify, rules, scores, steps
        )
    order, rows, visited = result
    mask = visited if strategy.visited_only else slides.mask
    return Rollout(order, rows, mask, logits)


def _last_state(slides, episode, steps):
    """Tiles in order, their final rows and which were visited, of one episode each."""
    estimated = episode.estimate_step[:, 0] < steps
    visited = episode.zoom_step[:, 0] < steps
    rows = jnp.where(estimated[..., None], episode.estimated[:, 0], slides.z)
    rows = jnp.where(visited[..., None], slides.v, rows)
    return episode.actions[:, 0], rows, visited


def _play_in_env(slides, updater, act, classify, rules, scores, steps):
    """The same, and logits, where rows change repeatedly: all rows at each step."""

    def update(v, z, rows):
        return updater.output_layers(
            updater.zoom_terms(v, z)[None] + updater.row_terms(rows)
        )

    def one(slide, scores):
        def choose(step, rows, allowed):
            del step
            logits = act(rows) if scores is None else scores
            return jnp.where(allowed, logits, -jnp.inf).argmax().astype(jnp.int32)

        def logits_of(rows):
            weights, values = classify(rows)
            return mean_attention(weights, slide.mask) @ values

        first = reset(slide.z, slide.mask, slide.horizon)
        last, (order, logits) = play_steps(
            first, slide.v, update, choose, rules, steps, logits_of
        )
        logits = jnp.concatenate([logits, logits_of(last.rows)[None]])
        return (order, last.rows, last.visited), logits

    return jax.vmap(one)(slides, scores)


def highest_first(scores: Float[Array, "*b n"]) -> Callable:
    """A choice for `ops.episode.play`: the highest score among the tiles left."""

    def choose(step, log_p):
        del step
        left = jnp.isfinite(log_p)
        return jnp.where(left, scores, -jnp.inf).argmax(-1).astype(jnp.int32)

    return choose


def evenly_spaced(mask: Bool[Array, " n"], steps: Int[Array, ""]) -> Float[Array, " n"]:
    """Scores of 1 for `steps` tiles spaced evenly among the masked, 0 for the rest.

    Tiles come row by row: among all of a slide they lie as on a slanted grid.
    """
    place = jnp.cumsum(mask) - 1
    count = jnp.maximum(mask.sum(), 1)
    # Of `count` places those at which the share of the steps passes a whole number.
    crossings = lambda i: i * steps // count
    return (mask & (crossings(place + 1) > crossings(place))).astype(jnp.float32)
