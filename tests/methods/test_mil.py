"""CLAM against the numbers of its reference implementation, and by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsi_jax import config_fields
from wsi_jax.methods import mil
from wsi_jax.ops.attention_weights import Normaliser
from wsi_jax.types import Bag, Task

TASK = Task(("normal", "tumor"))


def method_of(config, task=TASK):
    (stage,) = config.stages(task, optax.sgd(1.0))
    return stage.method


def loss_and_gradients(method, state, bag):
    def loss(params, x):
        bags = bag._replace(x=x)
        return method.step(state._replace(params=params), bags)[1]["loss"]

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(state.params, bag.x)


@pytest.fixture
def fixture(shared):
    return np.load(shared / "fixtures/clam/clam_sb.npz")


def head_of(a):
    """A reference CLAM-SB's arrays under our names; linear weights come (out, in)."""
    linear = lambda name: {"kernel": a(f"{name}.weight").T, "bias": a(f"{name}.bias")}
    instance = [linear(f"instance_classifiers.{c}") for c in (0, 1)]
    return {
        "embedding": {"fc": linear("attention_net.0")},
        "gated": {
            "value": linear("attention_net.3.attention_a.0"),
            "gate": linear("attention_net.3.attention_b.0"),
            "logits": linear("attention_net.3.attention_c"),
        },
        "kernel": a("classifiers.weight"),
        "bias": a("classifiers.bias"),
        "instance_kernel": np.stack([c["kernel"] for c in instance]),
        "instance_bias": np.stack([c["bias"] for c in instance]),
    }


def bag_of(x, label):
    return Bag(
        jnp.asarray(x)[None],
        jnp.ones((1, len(x)), bool),
        jnp.array([label]),
        jnp.ones(1),
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("label", "subtyping", "chunk"),
    [(0, False, 64), (1, True, 200)],
)
def test_clam_sb_is_the_reference(fixture, label, subtyping, chunk):
    config = mil.CLAM(
        dropout=0.0, subtyping=subtyping, chunk=chunk, dtype=mil.Dtype.float64
    )
    method = method_of(config)
    bag = bag_of(fixture["input"].astype(np.float64), label)
    head = head_of(lambda name: fixture[f"param.{name}"].astype(np.float64))
    state = jax.jit(method.init)(jax.random.key(0), bag)
    chex.assert_trees_all_equal_shapes(state.params["params"], head)
    params = {"params": jax.tree.map(jnp.asarray, head)}
    state = state._replace(params=params)

    prediction = jax.jit(method.predict)(params, bag, jax.random.key(0))
    close = lambda a, b: chex.assert_trees_all_close(a, b, rtol=1e-6, atol=1e-9)
    close(prediction.logits, fixture["logits"])
    close(prediction.attention, fixture["A"])

    case = f"label{label}.subtyping{int(subtyping)}"
    metrics = jax.jit(method.step)(state, bag)[1]
    close(metrics["bag_loss"], fixture[f"{case}.bag_loss"])
    close(metrics["instance_loss"], fixture[f"{case}.instance_loss"])
    close(metrics["loss"], fixture[f"{case}.total_loss"])

    _, (grads, dx) = loss_and_gradients(method, state, bag)
    close(np.float32(dx[0]), fixture[f"{case}.grad.input"])
    # The reference keeps four rows of its greater gradients, and every one's norm.
    rows = head_of(lambda name: fixture[f"{case}.grad.{name}"])
    part = lambda ours, theirs: ours[tuple(slice(n) for n in theirs.shape)]
    ours = jax.tree.map(part, grads["params"], rows)
    close(ours, rows)
    norm = lambda tree: np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(tree)))
    names = [n for n in fixture.files if n.startswith(f"{case}.gradnorm.")]
    close(norm(grads), norm([fixture[name] for name in names]))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("subtyping", [False, True])
def test_clam_mb_by_hand(subtyping):
    """Multi-branch CLAM written out, without a mask, a batch or a chunk."""
    config = mil.CLAM(
        multi_branch=True,
        subtyping=subtyping,
        sampled=3,
        width=7,
        attention=5,
        dropout=0.0,
        chunk=4,
        dtype=mil.Dtype.float64,
    )
    task = Task(("a", "b", "c"))
    method = method_of(config, task)
    x = np.random.default_rng(1).normal(size=(11, 6))
    bag = bag_of(x, 1)
    state = jax.jit(method.init)(jax.random.key(0), bag)
    rng = np.random.default_rng(0)
    noise = lambda p: p + 0.3 * rng.normal(size=p.shape)
    state = state._replace(params=jax.tree.map(noise, state.params))

    def by_hand(params, x):
        p = params["params"]
        dense = lambda p, x: jnp.einsum("nf,fd->nd", x, p["kernel"]) + p["bias"][None]
        h = jax.nn.relu(dense(p["embedding"]["fc"], x[0]))
        value, gate = (dense(p["gated"][name], h) for name in ("value", "gate"))
        scores = dense(p["gated"]["logits"], jnp.tanh(value) * jax.nn.sigmoid(gate))
        logits, instance = [], 0.0
        for c in range(3):
            attention = jax.nn.softmax(scores[:, c])
            logits.append((attention @ h) @ p["kernel"][c] + p["bias"][c])
            order = jnp.argsort(attention)
            kernel, bias = p["instance_kernel"][c], p["instance_bias"][c]
            log_p = jax.nn.log_softmax(h @ kernel + bias[None])
            top, low = order[-3:], order[:3]
            if c == 1:
                instance -= (log_p[top, 1].sum() + log_p[low, 0].sum()) / 6
            elif subtyping:
                instance -= log_p[top, 0].mean()
        bag_loss = -jax.nn.log_softmax(jnp.stack(logits))[1]
        return 0.7 * bag_loss + 0.3 * (instance / 3 if subtyping else instance)

    fast = loss_and_gradients(method, state, bag)
    slow = jax.jit(jax.value_and_grad(by_hand, (0, 1)))(state.params, bag.x)
    chex.assert_trees_all_close(fast, slow, rtol=1e-6, atol=1e-9)


def test_a_model_from_before_has_the_softmax():
    plain = config_fields.to_plain(mil.CLAM(width=7))
    del plain["normaliser"]
    assert config_fields.from_plain(plain) == mil.CLAM(width=7)
    assert mil.CLAM().normaliser is Normaliser.softmax
