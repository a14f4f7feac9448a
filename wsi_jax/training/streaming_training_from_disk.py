"""Training of a trunk and a head on whole slides on disk, tile by tile.

Forward tile by tile, the head's loss, backward tile by tile, one update. It leaves the
device after every tile. Each device has slides of its own, and a thread that feeds it;
each process reads the slides of its own devices alone.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from wsi_jax.ops.slide_keys import halves, slide_keys
from wsi_jax.training.compile import compile_phase, replicate, state_shardings
from wsi_jax.training.device_threads import (
    from_devices,
    on_device,
    on_devices,
    own_devices,
)
from wsi_jax.training.mapped_slide import SHORTEST
from wsi_jax.training.mesh import (
    on_each_device,
    share,
    spread_over_devices,
    whole_on,
)
from wsi_jax.training.packing import spread_by_size
from wsi_jax.training.processes import exchange_arrays, meet
from wsi_jax.training.streamed_net import StreamedNet, as_batch
from wsi_jax.types import Method, TrainState


class StreamedTraining:
    """The Method of a streamed net; `x` of its batches is a tuple of slides."""

    def __init__(self, streamed: StreamedNet):
        self.net, self._streamed, self._metrics = streamed.net, streamed, {}

    def method(self, tx: optax.GradientTransformation) -> Method:
        """Its init, step and predict, on all devices of a mesh."""

        def init(key, batch):
            del batch
            key, init_key = jax.random.split(key)
            params = self.net.init(init_key)
            return TrainState(jnp.int32(0), params, tx.init(params), key)

        def on_mesh(read, mesh, spread):
            del read  # slides read themselves
            init_there = lambda *args: replicate(init(*args), mesh)
            step = self._step(tx, mesh, spread)
            return Method(init_there, step, self._predictions(mesh))

        return Method(init, None, None, driver=on_mesh)

    def _step(self, tx, mesh, spread):
        def update(state, sums):
            added = lambda _, own, total: total(own)
            grads, metrics = on_each_device(added, None, sums)
            grads = jax.tree.map(lambda g, p: g.reshape(p.shape), grads, state.params)
            updates, opt = tx.update(grads, state.opt, state.params)
            params = optax.apply_updates(state.params, updates)
            opt = spread_over_devices(opt)
            metrics = {name: value[0] for name, value in metrics.items()}
            metrics |= {"grad_norm": optax.tree.norm(grads)}
            return TrainState(state.step + 1, params, opt, state.key), metrics

        update = compile_phase(
            update, donate=(0,), mesh=mesh, spread=spread,
            out=(state_shardings(mesh, spread), whole_on(mesh)),
        )  # fmt: skip
        learn = self._learner()

        def step(state, batch):
            shares, step = self._shares(batch.x, mesh), int(state.step)
            zeros = self._no_metrics(state.params, batch)

            def learn_some(device, check):
                own = on_device((state.params, state.key), device)
                return learn(*own, step, batch, shares[device], zeros, check)

            sums = on_devices(learn_some, list(shares))
            meet("gradients")
            return update(state, from_devices(sums, mesh))

        return step

    def _learner(self):
        """(params, key, step, batch, indices of slides, metrics of none, check) -> the
        slides' gradient and metrics, summed; `check` as in `StreamedNet.map`."""
        net, keys = self.net, compile_phase(_batch_keys)
        draw, zeros = compile_phase(net.draw_augmentation), compile_phase(_zeros)
        learn = compile_phase(self._learn, donate=(0,))

        def learn_slides(params, key, step, batch, indices, metrics, check):
            weight = np.asarray(batch.weight)
            count = max(1, np.count_nonzero(weight))
            shares, parts = weight / count, (weight > 0).astype(weight.dtype) / count
            augment_keys, head_keys = keys(key, step, weight)
            trains, grads = step >= net.frozen_steps, zeros(params)
            metrics = jax.tree.map(jnp.array, metrics)
            for i in indices:
                turn, shift = jax.device_get(draw(augment_keys[i]))
                shift = shift if net.shifts_colours else None
                options = check, int(turn), shift, trains
                mapped = self._streamed.map(params, batch.x[i], *options)
                (grads["head"], metrics), bag = learn(
                    (grads["head"], metrics), params["head"], *mapped.bag(),
                    batch.target[i : i + 1], (shares[i], parts[i]), head_keys[i],
                )  # fmt: skip
                if trains:
                    grads["trunk"] = mapped.backward(bag, grads["trunk"])
                del mapped  # and its seams, before those of the next slide
            return grads, metrics

        return learn_slides

    def _shares(self, slides: Sequence, mesh: Mesh) -> dict[jax.Device, list[int]]:
        """Indices of the slides of each of this process's devices."""
        if mesh.size == 1:
            return {mesh.devices.item(): list(range(len(slides)))}
        shares = spread_by_size(map(self._streamed.work, slides), mesh.size)
        return {mesh.devices.flat[i]: shares[i] for i in own_devices(mesh)}

    def _no_metrics(self, params, batch):
        """The metrics of no slide; numbers are rows."""
        label, share = batch.target[:1], batch.weight[0]
        kind = label.shape, label.dtype, share.dtype
        if kind not in self._metrics:
            cells = self._streamed.plan.out
            x = jax.ShapeDtypeStruct((1, SHORTEST, cells.shape[-1]), cells.dtype)
            mask, key = jax.ShapeDtypeStruct(x.shape[:2], bool), jax.random.key(0)
            args = x, mask, label, (share, share), key
            self._metrics[kind] = jax.eval_shape(self._gradient, params["head"], *args)
        _, metrics = self._metrics[kind]
        return jax.tree.map(lambda a: np.zeros((1,), a.dtype), metrics)

    def _learn(self, sums, head, *args):
        """Adds a slide's gradient to the head's, and its metrics; also the gradient of
        its bag."""
        grads, totals = sums
        (more, bag), metrics = self._gradient(head, *args)
        metrics = {name: totals[name] + v[None] for name, v in metrics.items()}
        return (jax.tree.map(jnp.add, grads, more), metrics), bag

    def _gradient(self, head, x, mask, label, shares, key):
        """A slide's gradient for the head and the bag, and metrics.

        `shares` are the slide's weighted share of the loss, and its equal share of the
        other metrics.
        """
        share, part = shares

        def loss(head, x):
            losses, metrics = self.net.loss(head, x, mask, label, key[None])
            loss = share * losses[0]
            return loss, {"loss": loss} | {k: part * v[0] for k, v in metrics.items()}

        return jax.grad(loss, (0, 1), has_aux=True)(head, x)

    def _predictions(self, mesh):
        def predict(params, batch, key):
            del key
            shares = self._shares(batch.x, mesh)

            def predict_slides(device, check):
                own = on_device(params, device)
                return [
                    self._streamed.predict(own, batch.x[i], check) | {"slide": i}
                    for i in shares[device]
                ]

            here = itertools.chain(*on_devices(predict_slides, list(shares)))
            if share(mesh)["processes"] > 1:
                meet("predictions")
                here = itertools.chain(*exchange_arrays(list(here)))
            return as_batch(sorted(here, key=lambda one: int(one["slide"])))

        return predict


def _batch_keys(key, step, weight):
    """Keys of the augmentation of each slide, and of its dropout."""
    return halves(slide_keys(jax.random.fold_in(key, step), len(weight)))


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)
