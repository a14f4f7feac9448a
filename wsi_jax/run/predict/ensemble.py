"""Several trained runs that predict together: folds or seeds of one config.

The probability is the mean of the members' probabilities, each with its own correction
of the class prior. The label is decided at the mean of their thresholds, which is by
the mean of their margins `p - threshold`: a member whose probabilities run high, and
its threshold with them, does not pull the others along. It is how a run of folds
decides slides that all folds test (`run.evaluate`), so what its report has measured is
what its folds predict together.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from wsi_jax.data.cohort import Row
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.evals.metrics import predict as decide
from wsi_jax.provenance import config_hash
from wsi_jax.run.model_card import Card
from wsi_jax.run.predict.method_runner import SlideOutput
from wsi_jax.run.predict.predictor import Predictor
from wsi_jax.run.predict.predictor import load as load_one
from wsi_jax.run.predict.slide_prediction import SlidePrediction
from wsi_jax.run.predict.slide_predictor import SlidePredictor
from wsi_jax.run.tiling import TiledSlide
from wsi_jax.slides.slide import SlideError
from wsi_jax.training.compile_cache import keep_compiled
from wsi_jax.types import Takes

# Of these, what is loaded of a slide does not hang on what a member has learnt.
FROZEN = Takes.features, Takes.two_levels


def load(
    runs: str | os.PathLike | Sequence[str | os.PathLike | Predictor],
    *,
    refuse_unfamiliar_stains: bool = False,
    all_devices: bool = False,
) -> SlidePredictor:
    """Opens a trained run, or several that predict together.

    Args:
        runs: folder of a run or of one fold of it; or several of them, opened or not.
        refuse_unfamiliar_stains: a slide stained like none that the run has learnt from
            is refused; otherwise its prediction has a note.
        all_devices: tiles of a slide are encoded, or streamed, on all devices of this
            machine, not on the first.

    Returns:
        A Predictor; of several an Ensemble, which has the same methods.

    Raises:
        FileNotFoundError: there is no trained model in a folder.
        ValueError: its files are damaged, do not belong together or are of an earlier
            version, its encoder's weights are not those it was trained with, or several
            runs have other classes or tiles than the first.
    """
    keep_compiled()
    one = isinstance(runs, str | os.PathLike)
    folders, members = [runs] if one else list(runs), []
    if not folders:
        raise ValueError("no run; name one at least")
    for run in folders:
        like = members[0] if members else None
        kwargs = {"all_devices": all_devices, "like": like}
        kwargs["refuse_unfamiliar_stains"] = refuse_unfamiliar_stains
        if isinstance(run, Predictor):
            strict = refuse_unfamiliar_stains
            members.append(run.refusing_unfamiliar_stains() if strict else run)
        else:
            members.append(load_one(run, **kwargs))
    return members[0] if len(members) == 1 else Ensemble(members)


class Ensemble(SlidePredictor):
    """Trained runs that predict together; made by `load`.

    Attributes:
        members: the runs, opened.
        threshold: mean of the members' thresholds; None where the likeliest class wins.

    Raises:
        ValueError: a member has other classes or tiles than the first.
    """

    def __init__(self, members: Sequence[Predictor]):
        self.members = tuple(members)
        first, *others = self.members
        for other in others:
            _check_alike(first, other)
        self.classes, self.grouped = first.classes, any(m.grouped for m in self.members)
        thresholds = [member.card.threshold for member in self.members]
        two = first.card.threshold is not None
        self.threshold = float(np.mean(thresholds)) if two else None
        self._load_once = first.card.method.takes in FROZEN and all(
            not m.grouped and m._same_config(first.card) for m in self.members
        )

    def __repr__(self):
        each = "".join(f"\n  {member!r}" for member in self.members)
        return f"Ensemble of {len(self.members)}:{each}"

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that change with whatever decides a prediction."""
        return config_hash([member.digest for member in self.members])

    def _tile(self, row: Row) -> TiledSlide | SlideError:
        """The slide with its tiles, or why it is refused."""
        slide = self.members[0]._tile(row)
        for member in self.members[1:]:
            if isinstance(slide, SlideError) or "stained like" in slide.note:
                break
            slide = member._check_stain(slide)
        return slide

    def _outputs(
        self, slides: Sequence[TiledSlide], batch: int, reading: Reading, meter: Meter
    ) -> list[Sequence[SlideOutput | SlideError]]:
        """What each member gives for each slide."""
        if not self._load_once:
            each = [m._outputs(slides, batch, reading, meter) for m in self.members]
            return list(zip(*each, strict=True))
        runners = [member.runner for member in self.members]
        outputs = []
        for slide in slides:
            try:
                loaded = runners[0].input.one(slide, batch, reading, meter)
                some = [one.predict(loaded, reading, meter) for one in runners]
            except SlideError as error:
                some = [error] * len(runners)
            outputs.append(some)
        return outputs

    def _prediction(
        self, slide: TiledSlide, output: Any, meter: Meter
    ) -> SlidePrediction | SlideError:
        """The mean of the members' predictions, or why there is none."""
        each = [
            member._prediction(slide, one, meter)
            for member, one in zip(self.members, output, strict=True)
        ]
        errors = [one for one in each if isinstance(one, SlideError)]
        return errors[0] if errors else mean_prediction(each, self.threshold)

    def check_saliency(self) -> None:
        """Raises ValueError: gradients are drawn of one run."""
        raise ValueError(
            "the gradient at a slide's pixels (--saliency) is drawn of one run; "
            f"{len(self.members)} are given"
        )


def mean_prediction(
    each: Sequence[SlidePrediction], threshold: float | None
) -> SlidePrediction | SlideError:
    """The prediction of a slide by several runs, from that of each.

    Args:
        each: predictions of one slide, on the same tiles.
        threshold: of two classes; None where the likeliest wins.

    Returns:
        Mean probabilities and attention; or an error where the tiles are not the same,
        as those that could be read differ.
    """
    first, members = each[0], tuple(one.probabilities for one in each)
    if not all(np.array_equal(one.yx, first.yx) for one in each):
        return SlideError(
            f"{first.slide_id}: not every run could read the same tiles of it; copy "
            f"{first.path} again, or leave it out"
        )
    p = np.mean([list(one.values()) for one in members], 0)
    classes = list(first.probabilities)
    return first._replace(
        label=classes[int(decide(p[None], threshold)[0])],
        probabilities=dict(zip(classes, p.tolist(), strict=True)),
        attention=np.mean([one.attention for one in each], 0),
        tiles=max(one.tiles for one in each),
        note="; ".join(dict.fromkeys(one.note for one in each if one.note)),
        order=None,
        members=members,
    )


def _check_alike(first: Predictor, other: Predictor) -> None:
    """Refuses two runs that have no mean."""
    if first.classes != other.classes:
        raise ValueError(
            f"{first.folder} knows the classes {', '.join(first.classes)} and "
            f"{other.folder} {', '.join(other.classes)}: runs predict together where "
            "their classes are the same, in the same order"
        )
    if _tiles(first.card) != _tiles(other.card):
        raise ValueError(
            f"{first.folder} and {other.folder} see other tiles of a slide (grid, "
            "tissue or kind of method): runs predict together where these are the same"
        )


def _tiles(card: Card) -> tuple:
    """What decides which tiles of a slide a run sees."""
    tiling = card.tiling
    places = tiling.grid, tiling.tissue, tiling.overhang, tiling.children
    return card.method.takes, places, tiling.reads
