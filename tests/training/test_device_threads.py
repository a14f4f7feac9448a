"""Slides on several devices and in several processes are trained on as on one."""

import os
import pathlib
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import optax
import pytest
import streamed_images
from streamed_images import DamagedSlide, losses, slides, tiny_net, training
from trunks import assert_same

from wsi_jax.methods.streaming_clam import Mode
from wsi_jax.slides.slide import SlideError
from wsi_jax.training.compile import replicate
from wsi_jax.training.device_threads import on_devices
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Dtype

TESTS = pathlib.Path(streamed_images.__file__).parent


def one_step(devices, count):
    """Parameters after a step by the gradient itself, and predictions, in float64."""
    batch = slides(count)
    method, state = training(devices, optax.sgd(1.0), Dtype.float64)
    state, metrics = method.step(state, batch)
    return state.params, metrics, method.predict(state.params, batch, None)


def test_a_step_on_two_devices_is_that_on_one(x64):
    """Gradients, metrics and predictions of three slides."""
    alone, together = (one_step(jax.devices()[:n], 3) for n in (1, 2))
    assert_same(together, alone)


@pytest.mark.long
@pytest.mark.parametrize(("count", "devices"), [(5, 8), (8, 8), (11, 4)])
def test_twenty_steps_on_many_devices_are_those_on_one(count, devices):
    traces = []
    for some in (jax.devices()[:1], jax.devices()[:devices]):
        method, state = training(some, optax.adam(1e-2))
        trace, _ = losses(method, state, slides(count), 20)
        traces.append(trace)
    np.testing.assert_allclose(*traces, rtol=1e-5)
    assert traces[0][-1] < traces[0][0]


@pytest.mark.long
@pytest.mark.parametrize(("count", "devices"), [(5, 8), (11, 4)])
def test_gradients_of_many_devices_are_those_of_one(x64, count, devices):
    assert_same(
        one_step(jax.devices()[:devices], count), one_step(jax.devices()[:1], count)
    )


@pytest.mark.long
def test_two_processes_train_as_one(tmp_path):
    """Each reads its own slides, and both end where one of them fails."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script = str(TESTS / "streamed_images.py")
    command = lambda i: [sys.executable, script, str(i), address, tmp_path / f"{i}.npz"]
    environment = os.environ | {
        "PYTHONPATH": str(TESTS.parent),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    }
    started = [
        subprocess.Popen(command(i), env=environment, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    messages = [process.communicate(timeout=400)[1] for process in started]
    assert "process 1: this slide is damaged" in messages[1]
    assert all(process.returncode for process in started), messages
    first, second = (np.load(tmp_path / f"{i}.npz") for i in range(2))
    batch = slides(5)
    method, state = training(jax.devices()[:1], optax.adam(1e-2))
    trace, state = losses(method, state, batch, 20)
    logits = method.predict(state.params, batch, None).logits
    with jax.enable_x64(True):
        method, state = training(jax.devices()[:1], optax.sgd(1.0), Dtype.float64)
        params = jax.tree.leaves(method.step(state, batch)[0].params)
        for process in (first, second):
            np.testing.assert_allclose(process["losses"], trace, rtol=1e-5)
            np.testing.assert_allclose(process["logits"], logits, atol=1e-5)
            assert_same([process[f"params.{i}"] for i in range(len(params))], params)
    assert (first["read"] ^ second["read"]).all()  # each by one of them


def test_tiles_of_a_slide_are_split_over_devices(x64):
    """Its prediction, and the gradient of its pixels, where tiles read their tissue."""
    net, batch = tiny_net(Dtype.float64, mode=Mode.masked), slides(3)
    params = net.net.init(jax.random.key(0))
    one, two = (replicate(params, make_mesh(jax.devices()[:n])) for n in (1, 2))
    alone, split = (net.predict_by_tiles(p, batch, None) for p in (one, two))
    assert_same(split[:2], alone[:2])
    alone, split = (dict(net.saliency(p, batch.x[2], 1)) for p in (one, two))
    assert split.keys() == alone.keys()
    assert_same([split[at] for at in alone], list(alone.values()))


def test_an_error_on_one_device_ends_the_others():
    waiting = threading.Event()

    def work(device, check):
        if device == jax.devices()[2]:
            waiting.wait()
            raise SlideError("this slide is damaged")
        while True:  # as long as no other has failed
            waiting.set()
            check()

    with pytest.raises(SlideError, match="damaged"):
        on_devices(work, jax.devices()[:3])


@pytest.mark.long
def test_a_damaged_slide_stops_the_step():
    batch = slides(3)
    damaged = DamagedSlide(batch.x[1].image, batch.x[1].mask)
    method, state = training(jax.devices()[:2], optax.sgd(1.0))
    with pytest.raises(SlideError, match="damaged"):
        method.step(state, batch._replace(x=(batch.x[0], damaged, batch.x[2])))
