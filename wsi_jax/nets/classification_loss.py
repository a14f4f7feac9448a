"""The loss of predicted classes, and the share that is right."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def classification_loss(
    logits: Float[Array, "*b c"], label: Int[Array, "*b"]
) -> tuple[Float[Array, "*b"], dict[str, Float[Array, "*b"]]]:
    """Cross-entropy of each prediction, and its accuracy: 1 where it is right, else 0.

    Returns:
        (losses, {"accuracy": ...}).
    """
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return loss, {"accuracy": (logits.argmax(-1) == label).astype(jnp.float32)}
