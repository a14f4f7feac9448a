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
    """Sum of weighted values over the number of real slides; 0 where there are none.

    Real are slides of a weight above 0. The divisor is not the sum of the weights: in a
    batch where a class is missing the others would weigh more than they should.
    """
    count = (weight > 0).sum().astype(weight.dtype)
    return (values * weight).sum() / jnp.where(count > 0, count, 1)


def plain_mean(
    values: Float[Array, " b"], weight: Float[Array, " b"]
) -> Float[Array, ""]:
    """Mean over the real slides of a batch, whatever each of them weighs."""
    return weighted_mean(values, (weight > 0).astype(weight.dtype))


def supervised(
    init: Callable,
    loss: Callable,
    predict: Callable | None,
    tx: optax.GradientTransformation,
) -> Method:
    """Makes the Method of anything with a differentiable loss.

    The gradient is that of the loss weighted by `batch.weight`, over the number of real
    slides of the whole batch, on however many devices it lies. Metrics beside the loss
    are plain means.

    Args:
        init: (key, batch) -> params.
        loss: (params, batch, key) -> (loss of each slide [b], metrics each [b]).
        predict: (params, batch, key) -> Prediction; None where another makes it.
    """

    def init_state(key, batch):
        key, init_key = jax.random.split(key)
        params = init(init_key, batch)
        return TrainState(jnp.int32(0), params, tx.init(params), key)

    def mean_loss(params, batch, key):
        losses, metrics = loss(params, batch, key)
        mean = weighted_mean(losses, batch.weight)
        means = jax.tree.map(lambda v: plain_mean(v, batch.weight), metrics)
        return mean, {"loss": mean} | means

    def step(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        grads, metrics = jax.grad(mean_loss, has_aux=True)(state.params, batch, key)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt, state.key), metrics

    return Method(init_state, step, predict)
