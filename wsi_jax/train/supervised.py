"""The training step of anything with a differentiable loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from wsi_jax.types import Method, TrainState


def weighted_mean(
    values: Float[Array, " b"], weight: Float[Array, " b"]
) -> Float[Array, ""]:
    """Mean over slides; 0 where no slide weighs anything."""
    total = weight.sum()
    return (values * weight).sum() / jnp.where(total > 0, total, 1)


def supervised(
    init: Callable,
    loss: Callable,
    predict: Callable,
    tx: optax.GradientTransformation,
) -> Method:
    """Makes the Method of anything with a differentiable loss.

    The gradient is that of the mean loss over the whole batch, weighted by
    `batch.weight`, on however many devices the batch lies.

    Args:
        init: (key, batch) -> params.
        loss: (params, batch, key) -> (loss of each slide [b], metrics each [b]).
        predict: (params, batch, key) -> Prediction.
        tx: the optimiser.
    """

    def init_state(key, batch):
        key, init_key = jax.random.split(key)
        params = init(init_key, batch)
        return TrainState(jnp.int32(0), params, tx.init(params), key)

    def mean_loss(params, batch, key):
        losses, metrics = loss(params, batch, key)
        metrics = {"loss": losses} | metrics
        means = jax.tree.map(lambda v: weighted_mean(v, batch.weight), metrics)
        return means["loss"], means

    def step(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        grads, metrics = jax.grad(mean_loss, has_aux=True)(state.params, batch, key)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt, state.key), metrics

    return Method(init_state, step, predict)
