"""Numbers from the code released with SASHA, and its weights under our names."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from wsi_jax.nets.hafed import HAFED
from wsi_jax.nets.policy import Actor, Critic, Updater


def load(shared, name):
    """One archive of ../shared/fixtures/sasha."""
    with np.load(shared / "fixtures" / "sasha" / f"{name}.npz") as file:
        return {key: jnp.asarray(value) for key, value in file.items()}


def _linear(x, name):
    layer = {"kernel": x[f"{name}.weight"].T}
    return layer | ({"bias": x[f"{name}.bias"]} if f"{name}.bias" in x else {})


def _gated(x, name):
    return {
        "value": _linear(x, f"{name}.attention_V.0"),
        "gate": _linear(x, f"{name}.attention_U.0"),
        "logits": _linear(x, f"{name}.attention_weights"),
    }


def hafed(x, prefix):
    """The net, and a tree of its parameters, or of anything that they have."""
    part = lambda i, what: x.get(f"{prefix}/classifier.{i}.fc.{what}")
    one, two = (f"{prefix}/attention_{i}" for i in (1, 2))
    m1, m2 = (len(x[f"{name}.attention_weights.bias"]) for name in (one, two))
    head = _linear(x, f"{prefix}/Slide_classifier.fc")
    d, c = head["kernel"].shape
    # A single branch has no head in the graph, and so no gradient.
    kernels = [part(i, "weight") for i in range(m2)]
    biases = [part(i, "bias") for i in range(m2)]
    if kernels[0] is None:
        kernels, biases = [jnp.zeros((c, d))] * m2, [jnp.zeros(c)] * m2
    params = {
        "over_children": _gated(x, one),
        "over_tiles": _gated(x, two),
        "head": head,
        "branch_kernel": jnp.stack([w.T for w in kernels]),
        "branch_bias": jnp.stack(biases),
    }
    return HAFED(c, d, (m1, m2)), {"params": params}


def updater(x, prefix):
    """The net, and a tree of its parameters, or of anything that they have."""
    v, z, s = jnp.split(x[f"{prefix}/fc1.weight"].T, 3)
    norm = f"{prefix}/layer_norm"
    params = {
        "first_v": {"kernel": v, "bias": x[f"{prefix}/fc1.bias"]},
        "first_z": {"kernel": z},
        "first_s": {"kernel": s},
        "second": _linear(x, f"{prefix}/fc2"),
        "norm": {"scale": x[f"{norm}.weight"], "bias": x[f"{norm}.bias"]},
    }
    return Updater(len(v)), {"params": params}


def actor(x, prefix):
    """The net and its parameters."""
    gated = _gated(x, f"{prefix}/attention")
    return Actor(len(gated["value"]["kernel"])), {"params": {"gated": gated}}


def critic(x, prefix):
    """The net and its parameters."""
    params = {"gated": _gated(x, f"{prefix}/attention")}
    params["project"] = _linear(x, f"{prefix}/final_layer.fc")
    return Critic(len(params["project"]["kernel"]), clock=False), {"params": params}


def assert_stepped(params, after, lr, steps=1):
    """Parameters after AdamW, whose first steps are `lr` long for any gradient."""
    off = np.concatenate(
        [np.abs(a - b).ravel() for a, b in _pairs(params, after)], dtype=np.float64
    )
    assert np.quantile(off, 0.999) <= 1e-6
    assert off.max() <= 2 * lr * steps


def stepped(params, grads, lr, decay):
    """Parameters after a step of AdamW."""
    tx = optax.adamw(lr, weight_decay=decay)
    updates, _ = tx.update(grads, tx.init(params), params)
    return optax.apply_updates(params, updates)


def _pairs(a, b):
    chex.assert_trees_all_equal_structs(a, b)
    return zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
