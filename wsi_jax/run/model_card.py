"""What a trained run needs besides its weights to be used again: model.json."""

import dataclasses
import json
from typing import Any

from wsi_jax import __version__
from wsi_jax.config_fields import check_types, from_plain, to_plain
from wsi_jax.files import AnyPath, write_text
from wsi_jax.run.run_folder import check_version
from wsi_jax.run.tiling import Tiling
from wsi_jax.slides.stain import StainRange
from wsi_jax.training.checkpoint import digest, is_finite

CARD = "model.json"
WEIGHTS = "best"  # folder of the kept parameters, in that of their stage


@dataclasses.dataclass(kw_only=True)
class Card:
    """Description of a trained model.

    Attributes:
        classes: names of the classes.
        tiling: grid, tissue and encoder.
        method: config of the method.
        encoder: provenance of the encoder's weights; weights that have changed since
            are refused. "" where the features were made elsewhere.
        threshold: threshold on the second class's probability, chosen on validation;
            None where the likeliest class wins.
        dim: features of a tile.
        log_prior: correction added to each class's logit: it takes out what weights of
            classes shifted in training. () for none.
        stain: stains of the slides that it has learnt from.
        weights: `digest` of the parameters; "" to check nothing.
        features: hash of the fingerprints of the slides that it has learnt from.
        version: version of wsi_jax that wrote it.
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
    version: str = __version__

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


def save_card(folder: AnyPath, card: Card) -> None:
    """Writes a card into the folder of its run."""
    write_text(folder / CARD, json.dumps(to_plain(card), indent=1))


def read_card(path: AnyPath) -> Card:
    """The card of a trained run.

    Raises:
        RunError: an earlier version of wsi_jax wrote it.
        ValueError: it is damaged, or holds what no run writes.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        written_by = plain.get("version", "0.1.0") if "classes" in plain else ""
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    if written_by:
        check_version(written_by, path)
    try:
        card = from_plain(plain)
        if not isinstance(card, Card):
            raise ValueError("it describes something else")
        card.validate()
    # What is raised depends on where the file was cut or edited.
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error
    return card


def _damaged(path, error) -> ValueError:
    reason = str(error).partition("\n")[0].removeprefix("--")
    return ValueError(
        f"{path} does not describe a trained run ({type(error).__name__}: {reason}): "
        "put it back as the run wrote it, or delete it and the run's report.html and "
        "give the command of the run again, which writes both"
    )


def check_weights(
    params: Any, memory: dict[str, Any], card: Card, folder: AnyPath
) -> None:
    """Checks that parameters are numbers, and those that the card describes.

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
    weights = card.weights and digest(params)
    if weights != card.weights:
        raise ValueError(
            f"{folder} holds weights {weights}, and {CARD} beside it describes "
            f"{card.weights}: {mend}"
        )


def check_encoder(card: Card, folder: AnyPath) -> None:
    """Checks that an encoder's weights are those that the features were made with.

    Raises:
        ValueError: they are not, or are not known; it names the folder of the run.
    """
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
