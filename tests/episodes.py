"""Small slides of several sizes, small nets, and episodes of them at full cost."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import stacked
from wsi_jax.nets.hafed import HAFED
from wsi_jax.nets.policy import Actor, Critic, Updater
from wsi_jax.ops import zoom_env
from wsi_jax.ops.episode import RowUpdater, TwoLevelSlides, play, sampler
from wsi_jax.ops.zoom_env import Rules
from wsi_jax.training.actor_critic import Agent

D, COUNTS, STEPS = 6, (12, 9, 5), 6
RULES = Rules(tau=0.8)
NETS = {
    "hafed": HAFED(2, D),
    "updater": Updater(D),
    "actor": Actor(D),
    "critic": Critic(D),
}


def apply(params, net, *args, method=None):
    return NETS[net].apply(params[net], *args, method=method)


AGENT = Agent.from_modules(NETS["actor"], NETS["critic"])


class Problem(NamedTuple):
    """Slides, all nets' parameters, and keys of two episodes on each slide."""

    slides: TwoLevelSlides
    label: jax.Array
    weight: jax.Array
    params: dict
    keys: jax.Array

    @property
    def agent(self):
        """Parameters that are learnt."""
        return {name: self.params[name] for name in ("actor", "critic")}

    def classify(self, x):
        return apply(self.params, "hafed", x, method="row_logits")

    def classify_state(self, x, mask):
        return apply(self.params, "hafed", x, mask, method="classify").logits

    def play(self, choose=None, rules=RULES, chunk=3):
        return play(
            self.slides,
            RowUpdater.from_module(NETS["updater"], self.params["updater"]),
            lambda x: apply(self.params, "actor", x),
            choose or sampler(self.keys),
            rules,
            steps=STEPS,
            episodes=2,
            chunk=chunk,
        )

    def play_stacked(self, rules=RULES):
        update = functools.partial(apply, self.params, "updater")
        act = lambda x: apply(self.params, "actor", x)
        return stacked.play(self.slides, update, act, self.keys, rules, STEPS)


def problem(dtype=np.float32, padding=0, junk=0.0) -> Problem:
    """Tiles are of three kinds.

    With padding, `padding` rows of `junk` lie behind the last tile, and behind the last
    slide there is one without tiles or weight.
    """
    counts = (*COUNTS, 0) if padding else COUNTS
    rng, b, n = np.random.default_rng(0), len(counts), max(counts) + padding
    mask = np.arange(n)[None] < np.array(counts)[:, None]
    z, v = np.full((2, b, n, D), junk, dtype)
    for i, count in enumerate(COUNTS):
        kind = rng.normal(size=(3, D))[rng.integers(3, size=count)]
        z[i, :count] = kind + 0.3 * rng.normal(size=kind.shape)
        v[i, :count] = z[i, :count] + 0.5 * rng.normal(size=kind.shape)
    horizon = zoom_env.horizon(STEPS / max(counts), jnp.array(counts))
    slides = TwoLevelSlides.of(*map(jnp.asarray, (z, v, mask, horizon)))
    label = jnp.array([0, 1, 1, 0])[:b]
    weight = jnp.array(counts > np.zeros(b), dtype)
    keys = jax.random.split(jax.random.key(1), (b, 2))
    return Problem(slides, label, weight, _params(dtype), keys)


@functools.cache
def _params(dtype):
    """Larger than they begin, so that a policy is not uniform."""
    row, rows = jnp.zeros(D, jnp.float32), jnp.zeros((2, D), jnp.float32)
    examples = {"hafed": (rows[None], jnp.ones(1, bool)), "updater": (row, row, rows)}

    @jax.jit
    def init(key):
        keys = dict(zip(NETS, jax.random.split(key, len(NETS)), strict=True))
        return {
            name: net.init(keys[name], *examples.get(name, (rows,)))
            for name, net in NETS.items()
        }

    grown = lambda a: 3 * np.asarray(a, dtype)
    return jax.tree.map(grown, init(jax.random.key(2)))
