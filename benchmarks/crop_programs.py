"""The programs of methods that select the crops or tiles they read."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct as Shape
from jax.sharding import Mesh

from benchmarks.program_shapes import KEY, Program, Sizes, bag, placed, stages_of
from wsi_jax.training.compile import compile_method
from wsi_jax.types import Overviews


class CropMethod:
    """Shapes of a method that reads the crops it selects; a batch for each device."""

    def __init__(self, config: Any, stage: Any, slide_um: int, mesh: Mesh):
        self.mesh, batch = mesh, config.stage_train(stage).batch
        b, side = batch * mesh.size, slide_um / config.grid.mpp / config.grid.size_px
        nothing = lambda *places: None  # is read
        self.driver = compile_method(stage.method, mesh, nothing)
        cells = int(side), int(side)
        self.net = self.driver.net
        self.side = self.net.cells.crop_px
        blank = Shape((b, *(n * config.grid.size_px for n in cells), 3), jnp.uint8)
        background = Shape((b, 3), jnp.uint8)
        x = Overviews(blank, background, slide=Shape((b,), jnp.int32))
        self.batch = placed(mesh, bag(x, Shape((b, *cells), jnp.bool_)), "data")
        self.state = jax.eval_shape(stage.method.init, KEY, self.batch)
        if self.net.in_state:
            opt = self.state.opt._replace(ahead=self.selection(train=True))
            self.state = self.state._replace(opt=opt)

    @property
    def view(self):
        return self.net.view(self.state.params)

    @property
    def most(self) -> int:
        """Cells that are candidates, or drawn."""
        return self.net.most_cells(np.ones(self.batch.mask.shape, bool), True)

    def selection(self, train: bool):
        """Shapes of the crops that are selected."""
        n = self.most
        begin = functools.partial(self.driver.begin, n=n, train=train)
        chosen = jax.eval_shape(begin, self.view, self.batch, KEY)
        if not self.net.chunk:
            return chosen
        scores = Shape(chosen.index.shape, jnp.float32)
        return jax.eval_shape(self.driver.select, chosen, scores)

    def crops(self, selection):
        """Pixels of the crops that were read."""
        return Shape((*selection.index.shape, self.side, self.side, 3), jnp.uint8)

    def everywhere(self, tree):
        return placed(self.mesh, tree)

    def by_slide(self, tree):
        return placed(self.mesh, tree, "data")

    def step(self):
        """What learns from crops that were read."""
        chosen, state = self.by_slide(self.selection(True)), self.everywhere(self.state)
        ahead = chosen if self.net.in_state else None
        crops = self.by_slide(self.crops(chosen))
        if ahead is not None:
            opt = state.opt._replace(ahead=ahead)
            state = state._replace(opt=opt)
        return self.driver.learn, (state, self.batch, chosen, crops, ahead)

    def prediction(self):
        """What predicts from crops that were read."""
        chosen = self.by_slide(self.selection(False))
        crops, params = self.by_slide(self.crops(chosen)), self.state.params
        given = self.everywhere(params), self.batch, chosen, crops
        return self.driver.predict_on_crops, given

    def select(self):
        """What selects crops on overviews."""
        begin = jax.jit(functools.partial(self.driver.begin, n=self.most, train=True))
        return begin, (self.everywhere(self.view), self.batch, self.everywhere(KEY))

    def score(self):
        """What scores a chunk of tiles."""
        tiles = Shape((self.net.chunk, self.side, self.side, 3), jnp.uint8)
        scores = self.driver.scores[False]
        return scores.score, (self.everywhere(self.view), self.everywhere(tiles))


def crop_programs(sizes: Sizes) -> Iterator[Program]:
    """Those of attention sampling and of attention pooling, a batch for each device."""
    config = sizes.config("attention_sampling")
    (stage,) = stages_of(config)
    size = f"{config.method.crops} crops x {config.train.batch} slides"
    parts = ("step", size), ("select", "overviews"), ("prediction", size)
    for i, slide_um in enumerate(sizes.slides_um):
        larger = f" of {slide_um // 1000} mm" if i else ""
        for part, words in parts[:2] if i else parts:
            make = _program(config, stage, slide_um, part)
            yield Program("attention_sampling", f"{part}, {words}{larger}", make)
    config = sizes.config("attention_pooling")
    scorer, classifier = stages_of(config)
    method, scoring = config.method, config.method.scoring
    slides = f"{config.train.batch} slides"
    tiles = f"{method.best + method.worst} tiles x {slides}"
    parts = (
        (scorer, "score", f"score, {scoring.chunk} tiles"),
        (scorer, "step", f"scorer's step, {scoring.tiles} tiles x {slides}"),
        (classifier, "step", f"step, {tiles}"),
        (classifier, "prediction", f"prediction, {tiles}"),
    )
    for stage, part, words in parts:
        make = _program(config, stage, sizes.slides_um[0], part)
        yield Program("attention_pooling", words, make)


def _program(config, stage, slide_um, part: str) -> Callable:
    """What `Program` makes, of this part."""
    made = lambda mesh: CropMethod(config, stage, slide_um, mesh)
    return lambda mesh: getattr(made(mesh), part)()
