"""AdamW with warm-up, cosine decay, clipping and accumulation; a trunk thawed late."""

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from wsi_jax.config_fields import COUNT, POSITIVE

B1, B2 = 0.9, 0.999  # Adam's decay rates, as everywhere


class Schedule(enum.Enum):
    """Learning rate after the warm-up: down to 0 along a cosine, or constant."""

    cosine = "cosine"
    constant = "constant"


@dataclasses.dataclass(kw_only=True)
class Optimiser:
    """AdamW (Loshchilov & Hutter 2019) on a warmed-up schedule.

    Attributes:
        learning_rate: peak learning rate.
        warmup: fraction of the updates over which the rate rises from 0.
        weight_decay: decay of kernels; biases, norms and frozen statistics have none.
        clip_norm: greatest norm of the gradient; 0 for no clipping.
        accumulate: batches whose mean gradient makes one update.
        schedule: learning rate after the warm-up.
    """

    learning_rate: float = 2e-4
    warmup: float = 0.05
    weight_decay: float = 1e-5
    clip_norm: float = 1.0
    accumulate: int = 1
    schedule: Schedule = Schedule.cosine

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "warmup": (0, 1),
        "accumulate": COUNT,
    }

    def make(self, steps: int) -> optax.GradientTransformation:
        """The optimiser of a run of `steps` batches."""
        updates = max(steps // self.accumulate, 1)
        warm = round(self.warmup * updates)
        if self.schedule is Schedule.constant:
            # Over no steps it would never rise.
            rise = optax.warmup_constant_schedule(0.0, self.learning_rate, warm)
            rate = rise if warm else self.learning_rate
        else:
            rate = optax.warmup_cosine_decay_schedule(
                0.0, self.learning_rate, warm, updates
            )
        clip = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        decay = {"weight_decay": self.weight_decay, "mask": _kernels}
        adamw = optax.adamw(rate, b1=B1, b2=B2, **decay)
        tx = optax.chain(*clip, adamw)
        if self.accumulate == 1:
            return tx
        return optax.MultiSteps(tx, self.accumulate).gradient_transformation()


@dataclasses.dataclass(kw_only=True)
class Thaw:
    """A part that is frozen at first and then warmed up (Dooper et al. 2023, code).

    Attributes:
        frozen: steps in which the part is not trained.
        warmup: steps after these over which its learning rate rises to that of the
            rest, by the same factor each step.
        start: its learning rate at the start of the warm-up, as a share of the rest's.
        slower: factor of all learning rates once the part is trained.
    """

    frozen: int = 0
    warmup: int = 0
    start: float = 1e-3
    slower: float = 1.0

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(
        ("start", "slower"), (POSITIVE, math.inf)
    )

    def over(
        self, tx: optax.GradientTransformation, part: str = "trunk"
    ) -> optax.GradientTransformation:
        """`tx` for a dict of parameters, one of which is `part`.

        While the part is frozen `tx` gets a zero gradient for it. Adam's correction for
        moments that begin at zero (Kingma & Ba 2015, algorithm 1) starts for the part
        when it thaws; `tx` has Adam's usual decay rates, if it has any.
        """

        def init(params):
            return jnp.int32(0), jnp.int32(0), tx.init(params)

        def update(grads, state, params):
            step, slept, inner = state
            frozen = step < self.frozen
            still = lambda g: jnp.where(frozen, jnp.zeros_like(g), g)
            grads = grads | {part: jax.tree.map(still, grads[part])}
            updates, inner = tx.update(grads, inner, params)
            count = optax.tree_utils.tree_get(inner, "count", None, _of_adam)
            slept, late = _late_correction(frozen, slept, count)
            rest = jnp.where(frozen, 1.0, self.slower)
            rates = dict.fromkeys(updates, rest)
            rates[part] = jnp.where(frozen, 0.0, rest * self._warmup(step) * late)
            at = lambda rate: lambda u: (u * rate).astype(u.dtype)
            updates = {
                name: jax.tree.map(at(rates[name]), update)
                for name, update in updates.items()
            }
            return updates, (step + 1, slept, inner)

        return optax.GradientTransformation(init, update)

    def _warmup(self, step):
        """The part's learning rate as a share of the rest's, once it is trained."""
        if not self.warmup:
            return 1.0
        ahead = jnp.clip(1 - (step - self.frozen) / self.warmup, 0, 1)
        return self.start**ahead


def alone(part: str, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` for one part of a dict of parameters; the rest stays as it is."""
    label = lambda params: {name: name == part for name in params}
    return optax.partition({True: tx, False: optax.set_to_zero()}, label)


def scale_updates(
    part: str, rate: float, tx: optax.GradientTransformation
) -> optax.GradientTransformation:
    """`tx` with its updates of a part of the parameters, however deep, times `rate`.

    Raises:
        ValueError: a rate below 0, naming the flag.
    """
    if not rate >= 0:
        raise ValueError(f"--config.method.{part}_rate={rate:g}: 0 or more")

    def slow(updates, _):
        mine = lambda path: any(getattr(key, "key", None) == part for key in path)
        at = lambda path, u: (u * rate).astype(u.dtype) if mine(path) else u
        return jax.tree_util.tree_map_with_path(at, updates)

    return tx if rate == 1 else optax.chain(tx, optax.stateless(slow))


def _of_adam(path, value):
    """Whether a count is Adam's own, not that of a schedule."""
    del value
    return getattr(path[-1], "tuple_name", None) == "ScaleByAdamState"


def _late_correction(frozen, slept, count):
    """Adam's updates while frozen, and the factor that corrects its later ones."""
    if count is None:
        return slept, 1.0
    slept = jnp.where(frozen, count, slept)
    ran = jnp.maximum(count, 1).astype(jnp.float32)
    own = jnp.maximum(count - slept, 1).astype(jnp.float32)
    toward = lambda rate, n: 1 - rate**n
    mean = toward(B1, ran) / toward(B1, own)
    spread = toward(B2, own) / toward(B2, ran)
    return slept, mean * jnp.sqrt(spread)


def _kernels(params):
    is_kernel = lambda path, _: str(path[-1].key).endswith("kernel")
    return jax.tree_util.tree_map_with_path(is_kernel, params)
