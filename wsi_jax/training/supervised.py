"""The training step of anything with a differentiable loss, on all devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from wsi_jax.ops.slide_keys import slide_keys
from wsi_jax.training.mesh import on_each_device, spread_over_devices
from wsi_jax.types import Method, TrainState


def supervised(
    init: Callable,
    loss: Callable,
    predict: Callable | None,
    tx: optax.GradientTransformation,
    whole: bool = False,
) -> Method:
    """Makes the Method of anything with a differentiable loss.

    The gradient is that of the loss weighted by `batch.weight`, over the number of real
    slides of the whole batch, those of a weight above 0; not over the sum of weights,
    for where a class is missing the others would weigh more than they should. Each
    device sums over slides of its own, and the sums are added once. Metrics beside the
    loss are plain means.

    Args:
        init: (key, batch) -> params.
        loss: (params, batch, keys) -> (loss of each slide [b], metrics each [b]); the
            keys [b] are the slides' own.
        predict: (params, batch, key) -> Prediction; None where another makes it.
        whole: the loss of a slide depends on others of the batch; `loss` is then given
            all of them and one key.
    """

    def init_state(key, batch):
        key, init_key = jax.random.split(key)
        params = init(init_key, batch)
        opt = spread_over_devices(tx.init(params))
        return TrainState(jnp.int32(0), params, opt, key)

    def sums(params, batch, keys):
        """Sums over slides; their number is the last of them."""
        losses, metrics = loss(params, batch, keys)
        weight, real = batch.weight, batch.weight > 0
        total = jnp.where(real, losses * weight, 0).sum()
        mean = lambda v: jnp.where(real, v, 0).sum()
        each = {"loss": total} | {name: mean(v) for name, v in metrics.items()}
        return total, (each, real.sum().astype(weight.dtype))

    def gradient(params, split, total):
        grads, (metrics, count) = jax.grad(sums, has_aux=True)(params, *split)
        grads, metrics, count = total((grads, metrics, count))
        count = jnp.where(count > 0, count, 1)
        mean = lambda a: (a / count).astype(a.dtype)
        return jax.tree.map(mean, (grads, metrics))

    def step(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        if whole:
            grads, metrics = gradient(state.params, (batch, key), lambda tree: tree)
        else:
            split = batch, slide_keys(key, len(batch.weight))
            grads, metrics = on_each_device(gradient, state.params, split)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        opt = spread_over_devices(opt)
        return TrainState(state.step + 1, params, opt, state.key), metrics

    return Method(init_state, step, predict)
