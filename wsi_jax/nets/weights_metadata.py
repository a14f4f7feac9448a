"""What a file of weights says of itself: whose they are, and what they learnt from."""

import json
import os
from typing import Any, NamedTuple

from wsi_jax.nets import pretrained

KEY = "wsi_jax"


class Origin(NamedTuple):
    """Kept in the header of every file of weights that was made here.

    Attributes:
        encoder: of the weights, as `Encoder.describe` has it.
        classes: that it was taught, in the order of the classifier.
        seen: clusters of tiles, slides and patients that it has learnt from or was
            chosen on, that no test slide may come from.
        made: config, commit, date, machine and versions.
    """

    encoder: dict[str, str]
    classes: tuple[str, ...]
    seen: tuple[str, ...]
    made: dict[str, Any]


def to_metadata(origin: Origin) -> dict[str, str]:
    """An origin as `pretrained.save` takes it."""
    return {KEY: json.dumps(origin._asdict())}


def read_origin(path: str | os.PathLike) -> Origin | None:
    """The origin of a file of weights; None of one that was made elsewhere.

    Raises:
        WeightsError: the file is no safetensors file.
    """
    metadata = pretrained.read_metadata(path)
    if KEY not in metadata:
        return None
    plain = json.loads(metadata[KEY])
    sequences = {name: tuple(plain[name]) for name in ("classes", "seen")}
    return Origin(**plain | sequences)
