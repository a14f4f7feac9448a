"""The pure forms of methods that look, or sift: their slides lie on the device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from wsi_jax.ops.crop_grid import CropGrid, gather_crops
from wsi_jax.training.crop_selection import CropSelector
from wsi_jax.training.supervised import supervised
from wsi_jax.training.tile_scorer import Learner, TileScorer, anywhere, counts
from wsi_jax.types import Method


def reading(cells: CropGrid) -> Callable:
    """(batch, magnifications, corners) -> crops [b n s s 3] of slides on the device."""

    def read(batch, which, yx):
        cut = lambda planes, background, which, yx: gather_crops(
            planes, background, which, yx, cells.crop_px
        )
        return jax.vmap(cut)(batch.x.planes, batch.x.background, which, yx)

    return read


def resident(net: CropSelector, tx: optax.GradientTransformation) -> Method:
    """One program a step, equal to `looking` but for the rounding of float32.

    Args:
        net: that looks and judges.
        tx: the optimiser.
    """

    read = reading(net.cells)

    def places(batch, index):
        return net.places(index, batch.mask.shape[1:])

    def init(key, batch):
        init_key, draw_key, begin_key = jax.random.split(key, 3)
        params = net.init(init_key)
        if not batch.x.planes:  # to ask for their shapes
            return params
        seen, n = (params, batch.x.overview, batch.mask), net.most(batch.mask.shape[1:])
        drawn = net.draw(*seen, draw_key, n)
        which, yx = places(batch, drawn.index)
        return net.begin(begin_key, params, read(batch, which, yx), which, drawn.mask)

    def loss(params, batch, key):
        seen, n = (params, batch.x.overview, batch.mask), net.most(batch.mask.shape[1:])
        drawn = net.draw(*seen, key, n)
        crops = read(batch, *places(batch, drawn.index))
        return net.loss(*seen, drawn, crops, batch.target, key)

    def predict(params, batch, key):
        seen, n = (params, batch.x.overview, batch.mask), net.most(batch.mask.shape[1:])
        chosen = net.choose(*seen, key, n)
        crops = read(batch, *places(batch, chosen.index))
        said = net.verdict(params, batch.mask, chosen, crops)
        one = lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype)
        crop = jax.ShapeDtypeStruct((1, 1, *crops.shape[2:]), crops.dtype)
        shapes = one(batch.x.overview), one(batch.mask), crop
        overview, each = net.flops(params, *shapes)
        tiles = chosen.mask.sum(1)
        flops = overview + tiles.astype(jnp.float32) * each
        return said._replace(counts={"tiles": tiles, "flops": flops})

    return supervised(init, loss, predict, tx)


def sifting_resident(net: TileScorer, tx: optax.GradientTransformation) -> Method:
    """One program a step, equal to `sifting` but for the rounding of float32.

    Args:
        net: that scores and judges.
        tx: the optimiser.
    """
    read = reading(net.cells)

    def tiles(batch, index):
        return read(batch, *net.cells.crop_corners(index, batch.mask.shape[1:]))

    def most(batch, train):
        return net.most(batch.mask.shape[1:], train)

    def score(scorer, batch, found):
        """A chunk of candidates at a time, of all slides at once."""
        b, n = found.index.shape
        width = min(n, max(1, net.chunk // b))
        wide = jnp.pad(found.index, [(0, 0), (0, -n % width)])

        def some(index):
            seen = tiles(batch, index)
            return net.score(scorer, seen.reshape(-1, *seen.shape[2:])).reshape(b, -1)

        parts = jnp.moveaxis(wide.reshape(b, -1, width), 1, 0)
        return jnp.moveaxis(lax.map(some, parts), 0, 1).reshape(b, -1)[:, :n]

    def init(key, batch):
        keys = jax.random.split(key, 3)
        params = net.init(keys[0])
        if not batch.x.planes:  # to ask for their shapes
            return params
        kept = anywhere(net, keys[1], batch.mask, most(batch, train=False))
        return net.begin(keys[2], params, tiles(batch, kept.index), kept.mask)

    def step(state, batch):
        found = learner.candidates(state, batch.mask, most(batch, train=True))
        scores = score(learner.scorer(state), batch, found)
        kept = net.sift(scores, found)
        seen = kept, tiles(batch, kept.index)
        return learner.learn(state, batch._replace(x=seen))

    def predict(params, batch, key):
        n = most(batch, train=False)
        found = net.candidates(batch.mask, key, n, train=False)
        kept = net.sift(score(net.scorer(params), batch, found), found)
        seen = tiles(batch, kept.index)
        said = net.verdict(params, found, kept, seen)
        tile = jax.ShapeDtypeStruct((1, *seen.shape[2:]), seen.dtype)
        cost = counts(found.mask, kept.mask, net.flops(params, tile))
        return said._replace(counts=cost)

    learner = Learner(net, tx, init, predict)
    return Method(learner.init, step, predict)
