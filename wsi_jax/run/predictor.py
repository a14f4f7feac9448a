"""A trained run, opened: a slide in, a verdict out."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from wsi_jax.config_io import check_types, from_plain, rename_fields, to_plain
from wsi_jax.data.cohort import Row
from wsi_jax.data.tiles import Reading
from wsi_jax.evals.cost import Meter
from wsi_jax.evals.metrics import predict as decide
from wsi_jax.files import write_text
from wsi_jax.ops.class_prior import probabilities
from wsi_jax.provenance import config_hash
from wsi_jax.report.heatmap import heatmap
from wsi_jax.report.overview import Overview
from wsi_jax.report.zoom_figure import zoom_figure
from wsi_jax.run.inputs import input_of
from wsi_jax.run.tiling import Tiling, tile_slide
from wsi_jax.run.zoom_inference import ZoomInference
from wsi_jax.slides.grid import level0
from wsi_jax.slides.slide import SlideError, open_slide
from wsi_jax.slides.slide_id import slide_id_of
from wsi_jax.slides.stain import StainRange, unfamiliar
from wsi_jax.training.checkpoint import Checkpoints, digest, is_finite
from wsi_jax.training.compile import (
    compile_each,
    compile_method,
    make_mesh,
    replicate,
)
from wsi_jax.types import Task

CARD = "model.json"
WEIGHTS = "best"
# Fields of a config that Python has as arguments.
KEYWORDS = {
    "data.mpp": "predict(mpp=...)",
    "reading.max_unreadable": "Reading.max_unreadable",
}


@dataclasses.dataclass(kw_only=True)
class Card:
    """All that a trained run must tell to be used again.

    Attributes:
        classes: of the verdict.
        tiling: of the slides, with their encoder.
        method: that was trained.
        encoder: its provenance; weights that have changed since are refused. "" where
            the features were made elsewhere.
        threshold: on the second class's probability, chosen on validation; None where
            the likeliest class wins.
        dim: features of a tile.
        log_prior: of each class, added to logits: it takes out what weights of classes
            shifted in training. () for none.
        stain: of the slides that it has learnt from.
        weights: `digest` of the parameters that it is the card of; "" in the cards of
            earlier versions, of which nothing is checked.
        features: of the fingerprints of the slides that were learnt from.
    """

    classes: tuple[str, ...]
    tiling: Tiling
    method: Any
    encoder: str
    threshold: float | None = None
    dim: int
    log_prior: tuple[float, ...] = ()
    stain: StainRange = dataclasses.field(default_factory=StainRange)
    weights: str = ""
    features: str = ""

    def validate(self) -> None:
        """Raises ValueError for what no run writes."""
        check_types(self, "card")
        if not 2 <= len(set(self.classes)) == len(self.classes):
            raise ValueError(f"classes={self.classes}: two or more different names")
        if not hasattr(self.method, "takes"):
            raise ValueError(f"method={self.method!r}: no method")
        if len(self.log_prior) not in (0, len(self.classes)):
            raise ValueError(f"log_prior={self.log_prior}: not one for each class")
        two = len(self.classes) == 2
        if two != (self.threshold is not None):
            raise ValueError(
                f"threshold={self.threshold} and {len(self.classes)} classes"
            )
        if two and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold}: more than 0, at most 1")


class Verdict(NamedTuple):
    """What a run says of one slide.

    Attributes:
        slide_id: of the slide.
        label: the class it is called.
        probabilities: of each class.
        attention: [n], of each tile.
        yx: [n 2], corners of the tiles in level-0 pixels.
        tile_px: side of a tile in level-0 pixels.
        path: of the slide.
        mpp: of level 0.
        cost: tiles, bytes, seconds.
        note: what of the slide could not be read, or "".
        order: [t], of a method that zooms: the tiles zoomed into, the first first.
    """

    slide_id: str
    label: str
    probabilities: dict[str, float]
    attention: np.ndarray
    yx: np.ndarray
    tile_px: float
    path: str
    mpp: float
    cost: dict
    note: str = ""
    order: np.ndarray | None = None

    def heatmap(self, path: str | os.PathLike, mpp: float = 8.0) -> None:
        """Writes the attention over the slide's overview at `mpp` as a PNG.

        Of a method that zooms, beside the tiles that were zoomed into, in their order.

        Args:
            path: of the PNG.
            mpp: of the overview; of a coarser slide, the slide's own.

        Raises:
            SlideError: the overview cannot be read.
        """
        mpp = max(mpp, self.mpp)
        with open_slide(self.path, self.mpp) as slide:
            overview = Overview(slide.overview(mpp), mpp)
        yx_um, tile_um = self.yx * self.mpp, self.tile_px * self.mpp
        shown = overview, self.attention, yx_um, tile_um
        title = f"{self.slide_id}: {self.label} ({self.probabilities[self.label]:.2f})"
        if self.order is None:
            heatmap(*shown, path, title=title)
        else:
            zoom_figure(*shown, self.order, path, title=title)


def save_card(folder: pathlib.Path, card: Card) -> None:
    """Writes what `load` needs beside the weights."""
    write_text(folder / CARD, json.dumps(to_plain(card), indent=1))


def read_card(path: pathlib.Path) -> Card:
    """The card of a trained run.

    Raises:
        ValueError: it is damaged, or holds what no run writes.
    """
    try:
        card = from_plain(json.loads(path.read_text(encoding="utf-8")))
        if not isinstance(card, Card):
            raise ValueError("it describes something else")
        card.validate()
    # What is raised depends on where the file was cut or edited.
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).partition("\n")[0].removeprefix("--")
        raise ValueError(
            f"{path} does not describe a trained run ({type(error).__name__}: "
            f"{reason}): put it back as the run wrote it, or delete it and the run's "
            "report.html and give the command of the run again, which writes both"
        ) from error
    return card


def check_weights(
    params: Any, memory: dict[str, Any], card: Card, folder: pathlib.Path
) -> None:
    """Parameters are numbers, and those that the card describes.

    Raises:
        ValueError: they are not; it names the folder.
    """
    mend = f"put back what the run wrote, or delete {folder} and train it again"
    if not is_finite(params):
        raise ValueError(f"{folder} holds weights that are not finite: {mend}")
    classes = tuple(memory.get("classes") or card.classes)
    if classes != card.classes:
        raise ValueError(
            f"{folder} was trained on classes {', '.join(classes)}, and {CARD} beside "
            f"it has {', '.join(card.classes)}: {mend}"
        )
    found = card.weights and digest(params)
    if found != card.weights:
        raise ValueError(
            f"{folder} holds weights {found}, and {CARD} beside it describes "
            f"{card.weights}: {mend}"
        )


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
        ValueError: its files are damaged or do not belong together, or its encoder's
            weights are not those it was trained with.
    """
    folder = pathlib.Path(run)
    if not (folder / CARD).is_file():
        folds = sorted(p.parent.name for p in folder.glob(f"fold_*/{CARD}"))
        hint = f"; open one of its folds: {', '.join(folds)}" if folds else ""
        raise FileNotFoundError(
            f"{folder} has no trained model ({CARD}){hint or '; let its run end first'}"
        )
    card = read_card(folder / CARD)
    if not card.encoder:
        raise ValueError(
            f"{folder} was trained on precomputed features, and no encoder of theirs "
            "is known here: it judges slides in a run with --config.precomputed only"
        )
    now = card.tiling.encoder.provenance()
    if now != card.encoder:
        raise ValueError(
            f"{folder} was trained on features of an encoder with weights "
            f"{card.encoder}; {card.tiling.encoder.weights!r} now has {now}: put the "
            "first ones back"
        )
    return Predictor(folder, card, refuse_unfamiliar_stains)


class Predictor:
    """A trained model with its tiling; made by `load`.

    Attributes:
        card: what it is.
        names: of the fields of its config where errors are read, {"data.mpp": ...}.
    """

    names: Mapping[str, str] = KEYWORDS

    def __init__(
        self,
        folder: pathlib.Path,
        card: Card,
        refuse_unfamiliar_stains: bool = False,
    ):
        self.card = card
        self._refuse_unfamiliar_stains = refuse_unfamiliar_stains
        self._mesh = make_mesh(jax.local_devices()[:1])
        task, grid = Task(card.classes), card.tiling.grid
        kind, tx = input_of(card.method), optax.identity()
        *earlier, stage = kind.stages(card.method, grid, task, tx)
        self._input = kind(card.method, card.tiling, self._mesh)
        read = self._input.read_crops
        self._method = compile_method(stage.method, self._mesh, read)
        self._distil = [
            compile_each(lambda params, x, _, f=one.distil: f(params, x), self._mesh)
            for one in earlier
            if one.distil
        ]
        self._saliency = stage.saliency
        nothing = self._input.template(card.dim)
        fresh = lambda stage: (
            jax.eval_shape(stage.method.init, jax.random.key(0), nothing).params
        )
        for one in earlier:
            if one.distil:
                x = jax.eval_shape(one.distil, fresh(one), nothing.x)
                nothing = nothing._replace(x=x)
        like = fresh(stage)
        found = Checkpoints(folder / stage.name / WEIGHTS).restore(like)
        if found is None:
            raise FileNotFoundError(
                f"{folder / stage.name / WEIGHTS} holds no weights; train the run again"
            )
        check_weights(*found, card, folder / stage.name / WEIGHTS)
        self.params = replicate(found[0], self._mesh)
        self._zooming = None
        if stage.rounds:
            self._zooming = ZoomInference(
                card.tiling, card.method.children, stage.rounds, self.params, self._mesh
            )

    def predict(
        self,
        path: str | os.PathLike,
        mpp: float | None = None,
        batch: int = 64,
        reading: Reading | None = None,
        mask: str | os.PathLike = "",
    ) -> Verdict:
        """The verdict on a slide.

        Args:
            path: of the slide.
            mpp: of its level 0, if the file does not say or is wrong: it wins, with a
                note where the file says another by more than 5 %.
            batch: tiles encoded at a time.
            reading: threads and buffers.
            mask: of the tissue, for a run whose tissue.source is MASK.

        Raises:
            SlideError: the slide cannot be read at the run's mpp, has no tissue, has
                lost more than `reading.max_unreadable` of its tiles, or is refused for
                its stain.
        """
        row = as_row(path, mpp, mask)
        (verdict,) = self.together([row], batch=batch, reading=reading)
        if isinstance(verdict, SlideError):
            raise verdict
        return verdict

    def _predict(self, row: Row, batch: int, reading: Reading) -> Verdict:
        """The verdict of a method that does not zoom."""
        meter, found = Meter(), self._survey(row)
        loaded = self._input.one(found, batch, reading, meter)
        bag, key = loaded.bag, jax.random.key(0)
        for distil in self._distil:
            bag = bag._replace(x=distil(self.params, bag.x, key))
        said = jax.device_get(self._method.predict(self.params, bag, key))
        note = self._input.finish(loaded, reading, meter)
        return self._verdict(
            found, said.logits[0], said.attention[0], loaded.kept, meter, note
        )

    def together(
        self,
        rows: Sequence[Row],
        batch: int = 64,
        reading: Reading | None = None,
    ) -> list[Verdict | SlideError]:
        """The verdicts on several slides, or why there is none.

        Of a method that zooms, all slides are zoomed into at once and the encoder has
        full batches; each verdict then tells the cost of all. Of others they are judged
        one by one.

        Args:
            rows: the slides, from a manifest or `as_row`; labels are not asked for.
            batch: as of `predict`.
            reading: as of `predict`.
        """
        judge = self._zoomed if self._zooming else self._each
        return [
            self._refusal(str(one)) if isinstance(one, SlideError) else one
            for one in judge(rows, batch, reading or Reading())
        ]

    def _zoomed(self, rows, batch, reading) -> list[Verdict | SlideError]:
        meter, found, said = Meter(), {}, {}
        for i, row in enumerate(rows):
            try:
                found[i] = self._survey(row)
            except SlideError as error:
                said[i] = error
        if found:
            zoomed = self._zooming(list(found.values()), batch, reading, meter)
            for (i, one), seen in zip(found.items(), zoomed, strict=True):
                said[i] = SlideError(seen.refusal)
                if not seen.refusal:
                    said[i] = self._tried(one, seen, meter)
        return [said[i] for i in range(len(rows))]

    def _each(self, rows, batch, reading) -> Iterator[Verdict | SlideError]:
        for row in rows:
            try:
                yield self._predict(row, batch, reading)
            except SlideError as error:
                yield error

    def _tried(self, found, zoomed, meter) -> Verdict | SlideError:
        """Of a slide that was zoomed into with others."""
        try:
            verdict = self._verdict(
                found, zoomed.logits, zoomed.attention, zoomed.kept, meter, zoomed.note
            )
        except SlideError as error:
            return error
        return verdict._replace(order=zoomed.order)

    def _verdict(self, found, logits, attention, kept, meter, note) -> Verdict:
        if not np.isfinite(logits).all():
            raise SlideError(not_finite(found.row.slide_id))
        tiling, own = self.card.tiling, found.note
        own = own.removeprefix(f"{found.row.slide_id}: ")
        p = probabilities(logits, self.card.log_prior)
        label = int(decide(p[None], self.card.threshold)[0])
        return Verdict(
            slide_id=found.row.slide_id,
            label=self.card.classes[label],
            probabilities=dict(zip(self.card.classes, p.tolist(), strict=True)),
            attention=np.asarray(attention[: len(kept)]),
            yx=level0(found.yx[kept], tiling.grid.mpp, found.mpp),
            tile_px=tiling.grid.size_px * tiling.grid.mpp / found.mpp,
            path=found.row.path,
            mpp=found.mpp,
            cost=meter.as_dict(),
            note="; ".join(filter(None, (own, note))),
        )

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that change with whatever of the run decides a prediction."""
        settings = to_plain(self.card), self._refuse_unfamiliar_stains
        return config_hash(*settings, digest(self.params))

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
            path: of the slide.
            png: to write.
            label: the class.
            mpp: as in `predict`.
            block_mpp: the gradient is averaged over blocks of this side.
            reading: as in `predict`.
            mask: as in `predict`.

        Raises:
            ValueError: no such class, or as `check_saliency`.
            SlideError: as in `predict`.
        """
        self.check_saliency()
        if label not in self.card.classes:
            raise ValueError(f"no class {label!r}, only {', '.join(self.card.classes)}")
        found, grid = self._survey(as_row(path, mpp, mask)), self.card.tiling.grid
        reading, meter = reading or Reading(), Meter()
        loaded = self._input.one(found, 1, reading, meter)
        seen, size = loaded.streamed, max(block_mpp, found.mpp)
        block = max(1, round(size / grid.mpp))
        total = np.zeros([-(-n // block) for n in seen.shape])
        which = self.card.classes.index(label)
        for (r, c), grad in self._saliency(self.params, seen, which):
            h, w = grad.shape[:2]
            y, x = (np.arange(i * n, (i + 1) * n) for i, n in ((r, h), (c, w)))
            y, x = y[y < seen.shape[0]], x[x < seen.shape[1]]
            strength = np.abs(grad[: len(y), : len(x)]).sum(-1, dtype=np.float64)
            np.add.at(total, (y[:, None] // block, x[None] // block), strength)
        note = self._input.finish(loaded, reading, meter)
        at = np.argwhere(total > 0)
        title = f"{found.row.slide_id}: what moves {label}"
        area = np.minimum((at + 1) * block, seen.shape) - at * block
        side_um = block * grid.mpp
        with open_slide(found.row.path, found.mpp) as slide:
            overview = Overview(slide.overview(side_um), side_um)
        heatmap(
            overview,
            total[tuple(at.T)] / area.prod(1),
            at * side_um,
            side_um,
            png,
            title=title + " (damaged)" * bool(note),
            label="gradient",
        )

    def check_saliency(self) -> None:
        """Raises ValueError for a method whose gradient at pixels is not drawn."""
        if self._saliency is None:
            method = self.card.method
            raise ValueError(
                f"{type(method).__name__} {self._input.description}; the gradient at a "
                "slide's pixels (--saliency) is drawn of StreamingCLAM only"
            )

    def _survey(self, row):
        found = tile_slide(row, self.card.tiling)
        if found.reason:
            raise self._refusal(found.reason)
        difference = unfamiliar(found.stain, self.card.stain)
        if not difference:
            return found
        note = f"stained like no slide that the run has learnt from: {difference}"
        if self._refuse_unfamiliar_stains:
            raise SlideError(f"{found.row.slide_id}: {note}")
        return found._replace(note="; ".join(filter(None, (found.note, note))))

    def _refusal(self, message) -> SlideError:
        return SlideError(rename_fields(message, self.names))


def as_row(
    path: str | os.PathLike, mpp: float | None = None, mask: str | os.PathLike = ""
) -> Row:
    """A slide of no cohort; arguments as of `Predictor.predict`."""
    name = slide_id_of(path)
    return Row(name, os.fspath(path), "", name, "", mpp, mask_path=os.fspath(mask))


def not_finite(slide_id: str) -> str:
    """Why there is no prediction of a slide."""
    return (
        f"{slide_id}: the method's numbers for it are not finite; its features may be "
        "far from all that were learnt from"
    )
