"""A trained run, opened to predict slides."""

import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from wsi_jax.config_fields import to_plain
from wsi_jax.data.cohort import Row
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.evals.metrics import predict as decide
from wsi_jax.ops.class_prior import probabilities
from wsi_jax.provenance import config_hash
from wsi_jax.run import model_card
from wsi_jax.run.config_file import rename_fields
from wsi_jax.run.inference import Inference, SlideOutput
from wsi_jax.run.inputs import input_of
from wsi_jax.run.model_card import CARD, WEIGHTS, Card
from wsi_jax.run.saliency import block_means, draw_saliency
from wsi_jax.run.slide_prediction import SlidePrediction, not_finite
from wsi_jax.run.tiling import TiledSlide, tile_slide
from wsi_jax.run.zoom_inference import ZoomInference
from wsi_jax.slides.grid import level0
from wsi_jax.slides.slide import SlideError
from wsi_jax.slides.slide_id import slide_id_of
from wsi_jax.slides.stain import unfamiliar
from wsi_jax.training.checkpoint import Checkpoints, digest
from wsi_jax.training.compile import compile_each, compile_method, make_mesh, replicate
from wsi_jax.types import Bag, Stage, Task

# Fields of a config that Python has as arguments.
KEYWORDS = {
    "data.mpp": "predict(mpp=...)",
    "reading.max_unreadable": "Reading.max_unreadable",
}


def load(
    run: str | os.PathLike, *, refuse_unfamiliar_stains: bool = False
) -> "Predictor":
    """Opens the folder of a trained run, or of one fold of it.

    Args:
        run: the folder.
        refuse_unfamiliar_stains: a slide stained like none that the run has learnt from
            is refused; otherwise its prediction has a note.

    Raises:
        FileNotFoundError: there is no trained model in it.
        ValueError: its files are damaged, do not belong together or are of an earlier
            version, or its encoder's weights are not those it was trained with.
    """
    folder = pathlib.Path(run)
    if not (folder / CARD).is_file():
        folds = sorted(p.parent.name for p in folder.glob(f"fold_*/{CARD}"))
        hint = f"; open one of its folds: {', '.join(folds)}" if folds else ""
        raise FileNotFoundError(
            f"{folder} has no trained model ({CARD}){hint or '; let its run end first'}"
        )
    card = model_card.read_card(folder / CARD)
    model_card.check_encoder(card, folder)
    return Predictor(folder, card, refuse_unfamiliar_stains)


class Predictor:
    """A trained model; made by `load`.

    Attributes:
        card: its description.
        params: its parameters.
        names: what fields of its config are called in errors, {"data.mpp": "--mpp"}.
    """

    names: Mapping[str, str] = KEYWORDS

    def __init__(
        self, folder: pathlib.Path, card: Card, refuse_unfamiliar_stains: bool = False
    ):
        self.card, self._refuse_unfamiliar_stains = card, refuse_unfamiliar_stains
        mesh = make_mesh(jax.local_devices()[:1])
        kind, grid = input_of(card.method), card.tiling.grid
        self._input = kind(card.method, card.tiling, mesh)
        tx = optax.identity()
        *earlier, stage = kind.stages(card.method, grid, Task(card.classes), tx)
        distil = [one.distil for one in earlier if one.distil]
        self._saliency = stage.saliency
        bag = self._input.template(card.dim)
        params = _read_params(folder, card, bag, earlier, stage)
        self.params = replicate(params, mesh)
        if stage.rounds:
            self._infer = ZoomInference(
                card.tiling, card.method.children, stage.rounds, self.params, mesh
            )
        else:
            self._infer = Inference(
                self._input,
                compile_method(stage.method, mesh, self._input.read_crops),
                [compile_each(lambda p, x, _, f=f: f(p, x), mesh) for f in distil],
                self.params,
            )

    def predict(
        self,
        path: str | os.PathLike,
        mpp: float | None = None,
        batch: int = 64,
        reading: Reading | None = None,
        mask: str | os.PathLike = "",
    ) -> SlidePrediction:
        """The prediction of a slide.

        Args:
            path: its file.
            mpp: um/px of its level 0, if the file does not say or is wrong: it wins,
                with a note where the file's differs by more than 5 %.
            batch: tiles encoded at a time.
            reading: threads and buffers.
            mask: its tissue mask, for a run whose tissue.source is MASK.

        Raises:
            SlideError: the slide cannot be read at the run's mpp, has no tissue, has
                lost more than `reading.max_unreadable` of its tiles, or is refused for
                its stain.
        """
        row = row_of_path(path, mpp, mask)
        (prediction,) = self.predict_many([row], batch=batch, reading=reading)
        if isinstance(prediction, SlideError):
            raise prediction
        return prediction

    def predict_many(
        self,
        rows: Sequence[Row],
        batch: int = 64,
        reading: Reading | None = None,
        at_once: int = 16,
    ) -> Iterator[SlidePrediction | SlideError]:
        """The prediction of each slide, in order, or why there is none.

        Methods that zoom do so into several slides at once, so that the encoder has
        full batches; each prediction then has the cost of all of them. Others predict
        one slide after the other.

        Args:
            rows: the slides, from a manifest or `row_of_path`; labels are not needed.
            batch: as in `predict`.
            reading: as in `predict`.
            at_once: slides zoomed into at once.
        """
        at_once = at_once if self._infer.grouped else 1
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            for result in self._predict(some, batch, reading or Reading()):
                failed = isinstance(result, SlideError)
                yield self._renamed(result) if failed else result

    def _predict(self, rows, batch, reading) -> list[SlidePrediction | SlideError]:
        meter, results = Meter(), [self._tile(row) for row in rows]
        slides = [one for one in results if isinstance(one, TiledSlide)]
        outputs = iter(self._infer(slides, batch, reading, meter) if slides else ())
        for i, slide in enumerate(results):
            if isinstance(slide, TiledSlide):
                results[i] = self._prediction(slide, next(outputs), meter)
        return results

    def _tile(self, row: Row) -> TiledSlide | SlideError:
        """The slide with its tiles, or why it is refused."""
        slide = tile_slide(row, self.card.tiling)
        if slide.reason:
            return SlideError(slide.reason)
        difference = unfamiliar(slide.stain, self.card.stain)
        if not difference:
            return slide
        note = f"stained like no slide that the run has learnt from: {difference}"
        if self._refuse_unfamiliar_stains:
            return SlideError(f"{row.slide_id}: {note}")
        return slide._replace(note="; ".join(filter(None, (slide.note, note))))

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

    def saliency(
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

    def _renamed(self, error: SlideError) -> SlideError:
        """An error that names fields as the command or the function at hand does."""
        return SlideError(rename_fields(str(error), self.names))


def _read_params(
    folder: pathlib.Path, card: Card, bag: Bag, earlier: Sequence[Stage], stage: Stage
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


def row_of_path(
    path: str | os.PathLike, mpp: float | None = None, mask: str | os.PathLike = ""
) -> Row:
    """A slide of no cohort; arguments as those of `Predictor.predict`."""
    name = slide_id_of(path)
    return Row(name, os.fspath(path), "", name, "", mpp, mask_path=os.fspath(mask))
