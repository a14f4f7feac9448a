"""Images as slides to stream, a tiny StreamingCLAM, and its training in a process."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wsi_jax.methods.streaming_clam import Augment, StreamingCLAM
from wsi_jax.methods.streaming_clam import _Net as Net
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.ops.augment import rotate_flip
from wsi_jax.slides.slide import SlideError
from wsi_jax.training.compile import compile_method
from wsi_jax.training.mesh import make_mesh
from wsi_jax.training.processes import Cluster, ending_together
from wsi_jax.training.streamed_net import StreamedNet
from wsi_jax.training.streaming_training_from_disk import StreamedTraining
from wsi_jax.types import Bag, Dtype, Task

TASK = Task(("normal", "tumor"))
PLAIN = Augment(hue=0.0, saturation=0.0, value=0.0)


class ImageSlide:
    """An image with its tissue, read as `data.streamed_slide.StreamedSlide`."""

    def __init__(self, image, tissue):
        self.image, self.mask, self.tiles_read = image, tissue, 0
        self.shape = image.shape[:2]

    def rotated_shape(self, turn=0):
        return self.shape[::-1] if turn & 1 else self.shape

    def tissue(self, turn=0):
        return self._rotated(self.mask[..., None], turn)[..., 0]

    def tiles(self, order, tile_px, turn=0):
        image, (h, w) = self._rotated(self.image, turn), tile_px
        for r, c in order:
            self.tiles_read += 1
            tile = image[r * h : (r + 1) * h, c * w : (c + 1) * w]
            rest = [(0, n - m) for n, m in zip(tile_px, tile.shape[:2], strict=True)]
            yield np.pad(tile, [*rest, (0, 0)])[None]

    def _rotated(self, a, turn):
        if not turn:
            return a
        return np.asarray(rotate_flip(jnp.asarray(a)[None], jnp.array([turn]))[0])


class DamagedSlide(ImageSlide):
    """No tile of it can be read."""

    def tiles(self, order, tile_px, turn=0):
        raise SlideError("this slide is damaged")
        yield


def config(dtype=Dtype.float32, **kw):
    trunk = Encoder(stages=1, width=4, dtype=dtype)
    small = {"tile_px": 16, "pool": 4, "width": 4, "attention": 3, "chunk": 64}
    return StreamingCLAM(**{"trunk": trunk} | small | kw)


def images(side=48, count=2):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    cells = -(-(side // 4) // 4)
    mask = rng.random((count, cells, cells)) < 0.3
    mask[:, 1, 1] = True
    label, weight = np.arange(count, dtype=np.int32) % 2, np.ones(count)
    weight[0] = 2
    return Bag(x, mask, label, weight)


def on_disk(bag):
    return bag._replace(x=tuple(map(ImageSlide, bag.x, bag.mask)), mask=None)


def slides(count):
    """Slides of several sizes, as a batch."""
    parts = [on_disk(images(side, count)) for side in (32, 48, 64)]
    x = tuple(parts[i % 3].x[i] for i in range(count))
    return parts[0]._replace(x=x)


def tiny_net(dtype=Dtype.float32, **kw):
    """The tiny method as functions; parameters are float64 with the maps."""
    net = Net(config(dtype, augment=PLAIN, **kw), TASK)
    if dtype is Dtype.float64:
        init, wide = net.init, lambda a: a.astype(np.float64)
        net.init = lambda *args: jax.tree.map(wide, init(*args))
    return StreamedNet(net, "")


def training(devices, tx, dtype=Dtype.float32):
    """The tiny method on some devices, and its state before the first step."""
    method = StreamedTraining(tiny_net(dtype)).method(tx)
    compiled = compile_method(method, make_mesh(devices))
    return compiled, compiled.init(jax.random.key(0), None)


def losses(method, state, batch, steps):
    """Losses of some steps on one batch, and the state after."""
    trace = []
    for _ in range(steps):
        state, metrics = method.step(state, batch)
        trace.append(float(metrics["loss"]))
    return trace, state


def train_in_process(process, address, out):
    """One of two processes that train together; writes what it has found.

    At last the slides of the second are damaged.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    cluster = {"coordinator": address, "processes": 2, "process": process}
    Cluster(**cluster, patience_s=10).join()
    batch, results = slides(5), {}
    method, state = training(None, optax.adam(1e-2))
    results["losses"], state = losses(method, state, batch, 20)
    results["logits"] = method.predict(state.params, batch, None).logits
    results["read"] = [slide.tiles_read > 0 for slide in batch.x]
    with jax.enable_x64(True):
        method, state = training(None, optax.sgd(1.0), Dtype.float64)
        state, _ = method.step(state, batch)
        for i, leaf in enumerate(jax.tree.leaves(state.params)):
            results[f"params.{i}"] = np.asarray(leaf)
    np.savez(out, **results)
    damaged = [
        DamagedSlide(one.image, one.mask) if process and there else one
        for one, there in zip(batch.x, results["read"], strict=True)
    ]
    with ending_together(), jax.enable_x64(True):
        state, _ = method.step(state, batch._replace(x=tuple(damaged)))
        jax.block_until_ready(state)


if __name__ == "__main__":
    train_in_process(int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]))
