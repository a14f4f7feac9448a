"""Seconds and memory of learning to zoom: an update of PPO, and steps of episodes.

    taskset -c 0 python -m benchmarks.zoom --out benchmarks/results/zoom.json

`n` tiles with `d` features, of which about 31 are alike, and `t` steps in each of two
episodes on a slide: a fifth of its tiles. An update plays the episodes, has classifier
and critic weigh all their states, and takes four gradient steps on all of them.
Features are at hand, slides lie side by side. CPU seconds are the least of several
runs, without compilation; on one core, for they grow with the threads. `extra_mb` is
what the program takes: arguments, results and temporaries. `plain_` is the same by
every row of every state (`benchmarks.stacked`), with losses that differ by
`max_loss_diff` at most.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import record, stacked
from benchmarks.device import seconds
from wsi_jax.nets.hafed import HAFED
from wsi_jax.nets.policy import Actor, Critic, Updater
from wsi_jax.ops import zoom_env
from wsi_jax.ops.episode import Episode, RowUpdater, TwoLevelSlides, play, sampler
from wsi_jax.ops.zoom_env import Rules
from wsi_jax.training import ppo
from wsi_jax.training.actor_critic import Agent
from wsi_jax.training.ppo import PPO

D, SHARE, ALIKE, ROWS = 384, 0.2, 31, 16
RULES, CONFIG = Rules(), PPO()
NETS = {"hafed": HAFED(2, D), "updater": Updater(D), "actor": Actor(D)}
NETS |= {"critic": Critic(D)}
AGENT = Agent.from_modules(NETS["actor"], NETS["critic"])


class Given(NamedTuple):
    """What an update is given: all nets as they begin, slides, their labels, keys."""

    params: dict
    slides: TwoLevelSlides
    label: jax.Array
    keys: jax.Array

    @property
    def agent(self):
        return {name: self.params[name] for name in ("actor", "critic")}

    def act(self, x):
        return AGENT.act(self.params, x)


def given(slides: int, n: int) -> Given:
    """Slides of about n / 31 kinds of tiles; their rows at high resolution are near."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(slides, max(1, round(n / ALIKE)), D))
    kind = rng.integers(kinds.shape[1], size=(slides, n, 1))
    z = np.take_along_axis(kinds, kind, 1) + 0.2 * rng.normal(size=(slides, n, D))
    v = z + 0.3 * rng.normal(size=z.shape)
    row, rows = jnp.zeros(D), jnp.zeros((1, D))
    inputs = {"hafed": (rows[None], jnp.ones(1, bool)), "updater": (row, row, rows)}
    keys = dict(zip(NETS, jax.random.split(jax.random.key(0), len(NETS)), strict=True))
    params = {
        name: net.init(keys[name], *inputs.get(name, (rows,)))
        for name, net in NETS.items()
    }
    horizon = jnp.full(slides, zoom_env.horizon(SHARE, n))
    return Given(
        params,
        TwoLevelSlides(
            jnp.float32(z), jnp.float32(v), jnp.ones((slides, n), bool), horizon
        ),
        jnp.arange(slides) % 2,
        jax.random.split(jax.random.key(1), (slides, CONFIG.episodes)),
    )


def with_params(x: Given, net: str, method: str | None = None) -> Callable:
    """A net, or a part of it, as a function of rows."""
    return functools.partial(NETS[net].apply, x.params[net], method=method)


def optimiser() -> optax.GradientTransformation:
    """As SASHA has it."""
    clip, adamw = optax.clip_by_global_norm(0.5), optax.adamw(1e-5, weight_decay=1e-4)
    return ppo.optimiser(*[optax.chain(clip, adamw)] * 2)


def episodes(x: Given, steps: int) -> Episode:
    """Two on each slide."""
    rows = RowUpdater.from_module(NETS["updater"], x.params["updater"])
    settings = {"steps": steps, "episodes": CONFIG.episodes, "chunk": ROWS}
    return play(x.slides, rows, x.act, sampler(x.keys), RULES, **settings)


def update(x: Given, steps: int):
    """Parameters and losses by epoch, after an update."""
    tx, weight = optimiser(), jnp.ones(len(x.label))
    classify = with_params(x, "hafed", "row_logits")
    args = classify, x.slides, x.label, weight, episodes(x, steps), CONFIG
    gained = ppo.experience(AGENT, x.agent, *args)
    params, _, metrics = ppo.improve(
        AGENT, tx, x.agent, tx.init(x.agent), gained, CONFIG
    )
    return params, (metrics["actor_loss"], metrics["critic_loss"])


def plain_update(x: Given, steps: int):
    """The same, at full cost."""
    whole = with_params(x, "hafed", "classify")
    classify = lambda rows, mask: whole(rows, mask).logits
    rows = with_params(x, "updater")
    episode = stacked.play(x.slides, rows, x.act, x.keys, RULES, steps)
    args = classify, x.slides, x.label, episode, CONFIG
    params, losses, _ = stacked.train(AGENT, optimiser(), x.agent, *args)
    return params, losses


class Run(NamedTuple):
    """What a program gave and took."""

    out: Any
    cpu_s: float
    bytes: int


def run(program: Callable, x: Given, steps: int, times: int) -> Run:
    """Compiles, and runs `times` times."""
    jitted = jax.jit(program, static_argnums=1)
    compiled = jitted.lower(x, steps).compile()
    outputs = []

    def once():
        outputs[:] = [compiled(x)]
        return outputs

    spent = seconds(once, times, warm=0, clock=time.process_time)
    m = compiled.memory_analysis()
    sizes = m.argument_size_in_bytes, m.output_size_in_bytes, m.temp_size_in_bytes
    return Run(outputs[0], min(spent), sum(sizes))


def row(n: int, slides: int, times: int, plain: bool) -> dict:
    """Slides of n tiles, side by side."""
    x = given(slides, n)
    steps = int(zoom_env.horizon(SHARE, n))
    units = zoom_env.unit_rows(x.slides.z[0])
    fast, played = (run(f, x, steps, times) for f in (update, episodes))
    out = {
        "n": n,
        "d": D,
        "t": steps,
        "slides_together": slides,
        "alike": float((units @ units.T >= RULES.tau).sum(1).mean()),
        "cpu_s_per_slide_update": fast.cpu_s / slides,
        "env_steps_per_s": slides * CONFIG.episodes * steps / played.cpu_s,
        "extra_mb": fast.bytes / 1e6,
    }
    if plain:
        slow = run(plain_update, x, steps, 1)
        off = jax.tree.map(lambda a, b: abs(a - b).max(), fast.out[1], slow.out[1])
        out |= {
            "max_loss_diff": float(max(off)),
            "plain_cpu_s": slow.cpu_s / slides,
            "plain_mb": slow.bytes / 1e6,
        }
    return out


def rows(args: record.Arguments) -> Iterator[dict]:
    """One slide, several together, and one of many tiles."""
    n = 200 if args.quick else 1000
    yield row(n, 1, 5, plain=True)
    yield row(n, 8 if args.quick else 64, 2, plain=False)
    if not args.quick:
        yield row(10_000, 1, 2, plain=False)


if __name__ == "__main__":
    record.main(__doc__, rows)
