"""AdamW with warm-up, cosine decay, clipping and accumulation; a trunk thawed late."""

import dataclasses

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(kw_only=True)
class Optimiser:
    """AdamW (Loshchilov & Hutter 2019) on a warmed-up cosine.

    Attributes:
        learning_rate: at its peak.
        warmup: fraction of the updates over which the rate rises from 0.
        weight_decay: of kernels; biases, norms and frozen statistics never decay.
        clip_norm: the gradient's greatest norm; 0 for no clipping.
        accumulate: batches whose mean gradient makes one update.
    """

    learning_rate: float = 2e-4
    warmup: float = 0.05
    weight_decay: float = 1e-5
    clip_norm: float = 1.0
    accumulate: int = 1

    def make(self, steps: int) -> optax.GradientTransformation:
        """The optimiser of a run of `steps` batches."""
        updates = max(steps // self.accumulate, 1)
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, round(self.warmup * updates), updates
        )
        clip = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        adamw = optax.adamw(rate, weight_decay=self.weight_decay, mask=_kernels)
        tx = optax.chain(*clip, adamw)
        if self.accumulate == 1:
            return tx
        return optax.MultiSteps(tx, self.accumulate).gradient_transformation()


@dataclasses.dataclass(kw_only=True)
class Thaw:
    """A trunk frozen at first and then trained with care (Dooper et al. 2023, code).

    Attributes:
        frozen: steps in which the trunk stands still.
        warmup: steps after them over which its rate rises to the head's, by the same
            factor each step.
        start: of its rate then, as a share of the head's.
        slower: factor of all rates once the trunk is trained.
    """

    frozen: int = 0
    warmup: int = 0
    start: float = 1e-3
    slower: float = 1.0

    def validate(self) -> None:
        """Raises ValueError naming the flag that is wrong."""
        if min(self.frozen, self.warmup) < 0 or min(self.start, self.slower) <= 0:
            raise ValueError(
                "--config.method.thaw: frozen and warmup are steps, 0 or more; start "
                "and slower are factors above 0"
            )

    def over(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """`tx` for parameters {"trunk": ..., "head": ...}.

        While it is frozen the trunk's gradient is nothing to `tx` either: its moments
        stay at zero, and the gradient's norm is the head's alone.
        """

        def init(params):
            return jnp.int32(0), tx.init(params)

        def update(grads, state, params):
            step, inner = state
            frozen = step < self.frozen
            still = lambda g: jnp.where(frozen, jnp.zeros_like(g), g)
            grads = grads | {"trunk": jax.tree.map(still, grads["trunk"])}
            updates, inner = tx.update(grads, inner, params)
            head = jnp.where(frozen, 1.0, self.slower)
            trunk = jnp.where(frozen, 0.0, head * self._risen(step))
            rates = {"trunk": trunk, "head": head}
            at = lambda rate: lambda u: (u * rate).astype(u.dtype)
            updates = {
                n: jax.tree.map(at(rates[n]), part) for n, part in updates.items()
            }
            return updates, (step + 1, inner)

        return optax.GradientTransformation(init, update)

    def _risen(self, step):
        """The trunk's rate, as a share of the head's, once it is trained."""
        if not self.warmup:
            return 1.0
        ahead = jnp.clip(1 - (step - self.frozen) / self.warmup, 0, 1)
        return self.start**ahead


def _kernels(params):
    is_kernel = lambda path, _: str(path[-1].key).endswith("kernel")
    return jax.tree_util.tree_map_with_path(is_kernel, params)
