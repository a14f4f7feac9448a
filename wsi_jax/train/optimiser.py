"""AdamW with warm-up, cosine decay, clipping and gradient accumulation."""

import dataclasses

import jax
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


def _kernels(params):
    is_kernel = lambda path, _: str(path[-1].key).endswith("kernel")
    return jax.tree_util.tree_map_with_path(is_kernel, params)
