"""A trained run, opened to predict slides."""

import copy
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from wsi_jax.config_fields import to_plain
from wsi_jax.data.cohort import Row
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.evals.metrics import predict as decide
from wsi_jax.files import AnyPath, any_path
from wsi_jax.ops.class_prior import probabilities
from wsi_jax.provenance import config_hash
from wsi_jax.run import model_card
from wsi_jax.run.inputs import input_of
from wsi_jax.run.model_card import CARD, WEIGHTS, Card
from wsi_jax.run.predict.method_runner import MethodRunner, SlideOutput
from wsi_jax.run.predict.saliency import block_means, draw_saliency
from wsi_jax.run.predict.slide_prediction import SlidePrediction, not_finite
from wsi_jax.run.predict.slide_predictor import SlidePredictor, row_of_path
from wsi_jax.run.predict.zoom_method_runner import ZoomMethodRunner
from wsi_jax.run.tiling import TiledSlide, tile_slide
from wsi_jax.slides.grid import level0
from wsi_jax.slides.slide import SlideError
from wsi_jax.slides.stain import unfamiliar
from wsi_jax.training.checkpoint import Checkpoints, digest
from wsi_jax.training.compile import compile_each, compile_method, replicate
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Bag, Method, Stage, Task


def load(
    run: str | os.PathLike,
    *,
    refuse_unfamiliar_stains: bool = False,
    all_devices: bool = False,
    like: "Predictor | None" = None,
) -> "Predictor":
    """Opens the folder of a trained run, or of one fold of it.

    Args:
        run: the folder.
        refuse_unfamiliar_stains: a slide stained like none that the run has learnt from
            is refused; otherwise its prediction has a note.
        all_devices: tiles of a slide are encoded, or streamed, on all devices of this
            machine, not on the first.
        like: a run opened before; one of the same config shares its programs.

    Raises:
        FileNotFoundError: there is no trained model in it.
        ValueError: its files are damaged, do not belong together or are of an earlier
            version, or its encoder's weights are not those it was trained with.
    """
    folder = any_path(run)
    if not (folder / CARD).is_file():
        folds = sorted(p.parent.name for p in folder.glob(f"fold_*/{CARD}"))
        hint = f"; open one of its folds: {', '.join(folds)}" if folds else ""
        raise FileNotFoundError(
            f"{folder} has no trained model ({CARD}){hint or '; let its run end first'}"
        )
    card = model_card.read_card(folder / CARD)
    model_card.check_encoder(card, folder)
    return Predictor(folder, card, refuse_unfamiliar_stains, all_devices, like)


class Predictor(SlidePredictor):
    """A trained model; made by `load`.

    Attributes:
        folder: folder of its run, or of its fold.
        card: its description.
        params: its parameters.
        runner: runs the method on tiled slides.
    """

    def __init__(
        self,
        folder: AnyPath,
        card: Card,
        refuse_unfamiliar_stains: bool = False,
        all_devices: bool = False,
        like: "Predictor | None" = None,
    ):
        self.folder, self.card = folder, card
        self._refuse_unfamiliar_stains = refuse_unfamiliar_stains
        devices = jax.local_devices()
        mesh = make_mesh(devices[:1])
        self._mesh = make_mesh(devices) if all_devices else mesh
        kind, grid = input_of(card.method), card.tiling.grid
        same = like is not None and like._mesh == self._mesh
        same = same and like._same_config(card)
        self._input = like._input if same else kind(card.method, card.tiling, mesh)
        tx = optax.identity()
        *earlier, stage = kind.stages(card.method, grid, Task(card.classes), tx)
        distil = [one.distil for one in earlier if one.distil]
        self._input.encoder_mesh, self._saliency = self._mesh, stage.saliency
        by_tiles = self._mesh.size > 1 and stage.predict_by_tiles
        bag = self._input.template(card.dim)
        params = _read_params(folder, card, bag, earlier, stage)
        self.params = replicate(params, self._mesh if by_tiles else mesh)
        if same:
            self.runner = copy.copy(like.runner)
            self.runner.params = self.params
        elif stage.rounds:
            self.runner = ZoomMethodRunner(
                card.tiling, card.method.children, stage.rounds, self.params, self._mesh
            )
        else:
            method = compile_method(stage.method, mesh, self._input.read_crops)
            if by_tiles:
                method = Method(None, None, by_tiles)
            self.runner = MethodRunner(
                self._input,
                method,
                [compile_each(lambda p, x, _, f=f: f(p, x), mesh) for f in distil],
                self.params,
            )

    def __repr__(self):
        grid, method = self.card.tiling.grid, type(self.card.method).__name__
        return (
            f"Predictor({self.folder}: {method}, {', '.join(self.classes)}; tiles of "
            f"{grid.size_px} px at {grid.mpp:g} um/px)"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.card.classes

    @property
    def threshold(self) -> float | None:
        """Threshold on the second class's probability; None: the likeliest wins."""
        return self.card.threshold

    def refusing_unfamiliar_stains(self) -> "Predictor":
        """The same run; a slide stained like none it has learnt from is refused."""
        other = copy.copy(self)
        other._refuse_unfamiliar_stains = True
        other.__dict__.pop("digest", None)  # which hangs on it
        return other

    @property
    def grouped(self) -> bool:
        """Whether slides are faster together than one by one."""
        return self.runner.grouped

    def _same_config(self, card: Card) -> bool:
        """Whether a run differs from this one in what was learnt alone."""
        ours = self.card
        fields = "classes", "method", "tiling", "encoder", "dim"
        return all(getattr(card, name) == getattr(ours, name) for name in fields)

    def _tile(self, row: Row) -> TiledSlide | SlideError:
        """The slide with its tiles, or why it is refused."""
        slide = tile_slide(row, self.card.tiling)
        return SlideError(slide.reason) if slide.reason else self._check_stain(slide)

    def _check_stain(self, slide: TiledSlide) -> TiledSlide | SlideError:
        """The slide, with a note or refused if stained like none learnt from."""
        difference = unfamiliar(slide.stain, self.card.stain)
        if not difference:
            return slide
        note = f"stained like no slide that the run has learnt from: {difference}"
        if self._refuse_unfamiliar_stains:
            return SlideError(f"{slide.row.slide_id}: {note}")
        return slide._replace(note="; ".join(filter(None, (slide.note, note))))

    def _outputs(
        self, slides: Sequence[TiledSlide], batch: int, reading: Reading, meter: Meter
    ) -> list[SlideOutput | SlideError]:
        """What the method gives for each slide."""
        batch += -batch % self._mesh.size
        return self.runner(slides, batch, reading, meter)

    def _prediction(
        self, slide: TiledSlide, output: SlideOutput | SlideError, meter: Meter
    ) -> SlidePrediction | SlideError:
        name, grid = slide.row.slide_id, self.card.tiling.grid
        if isinstance(output, SlideError):
            return output
        if not np.isfinite(output.logits).all():
            return SlideError(not_finite(name))
        p = probabilities(output.logits, self.card.log_prior)
        label = int(decide(p[None], self.card.threshold)[0])
        notes = slide.note.removeprefix(f"{name}: "), output.note
        zooms = None if output.order is None else len(output.order)
        return SlidePrediction(
            slide_id=name,
            label=self.card.classes[label],
            probabilities=dict(zip(self.card.classes, p.tolist(), strict=True)),
            attention=np.asarray(output.attention),
            yx=level0(slide.yx[output.kept], grid.mpp, slide.mpp),
            tile_px=grid.size_px * grid.mpp / slide.mpp,
            path=slide.row.path,
            mpp=slide.mpp,
            cost=meter.as_dict(),
            tiles=self._input.tiles_read(len(output.kept), zooms),
            note="; ".join(filter(None, notes)),
            order=output.order,
        )

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that change with whatever of the run decides a prediction."""
        refuse = self._refuse_unfamiliar_stains
        return config_hash(to_plain(self.card), refuse, digest(self.params))

    def draw_saliency(
        self,
        path: str | os.PathLike,
        png: str | os.PathLike,
        label: str,
        mpp: float | None = None,
        block_mpp: float = 8.0,
        reading: Reading | None = None,
        mask: str | os.PathLike = "",
    ) -> None:
        """Draws which pixels move the logit of a class: the size of its gradient.

        Args:
            path: file of the slide.
            png: where the PNG is written.
            label: the class.
            mpp: as in `predict`.
            block_mpp: side, in um, of the blocks over which gradients are averaged.
            reading: as in `predict`.
            mask: as in `predict`.

        Raises:
            ValueError: no such class, or as `check_saliency`.
            SlideError: as in `predict`.
        """
        self.check_saliency()
        if label not in self.card.classes:
            raise ValueError(f"no class {label!r}, only {', '.join(self.card.classes)}")
        slide, grid = self._tile(row_of_path(path, mpp, mask)), self.card.tiling.grid
        if isinstance(slide, SlideError):
            raise self._renamed(slide)
        reading, meter = reading or Reading(), Meter()
        loaded = self._input.one(slide, 1, reading, meter)
        block = max(1, round(max(block_mpp, slide.mpp) / grid.mpp))
        index, streamed = self.card.classes.index(label), loaded.streamed
        gradients = self._saliency(self.params, streamed, index)
        blocks = block_means(gradients, streamed.shape, block)
        title = f"{slide.row.slide_id}: what moves {label}"
        try:
            title += " (damaged)" * bool(self._input.finish(loaded, reading, meter))
        except SlideError as error:
            raise self._renamed(error) from None
        draw_saliency(png, slide.row, slide.mpp, blocks, block * grid.mpp, title)

    def check_saliency(self) -> None:
        """Raises ValueError for a method whose gradient at pixels is not drawn."""
        if self._saliency is None:
            method = self.card.method
            raise ValueError(
                f"{type(method).__name__} {input_of(method).description}; the gradient "
                "at a slide's pixels (--saliency) is drawn of StreamingCLAM only"
            )


def _read_params(
    folder: AnyPath, card: Card, bag: Bag, earlier: Sequence[Stage], stage: Stage
) -> Any:
    """The parameters that the last stage of a run has kept; `bag` is for shapes."""
    shapes = lambda stage: (
        jax.eval_shape(stage.method.init, jax.random.key(0), bag).params
    )
    for one in earlier:
        if one.distil:
            bag = bag._replace(x=jax.eval_shape(one.distil, shapes(one), bag.x))
    weights = folder / stage.name / WEIGHTS
    restored = Checkpoints(weights).restore(shapes(stage))
    if restored is None:
        raise FileNotFoundError(f"{weights} holds no weights; train the run again")
    model_card.check_weights(*restored, card, weights)
    return restored[0]
