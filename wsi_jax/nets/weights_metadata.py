"""Metadata in a file of weights: its encoder, its classes, and its training data."""

import json
import os
from typing import Any, NamedTuple

from wsi_jax.nets import pretrained

KEY = "wsi_jax"


class WeightsMetadata(NamedTuple):
    """Metadata in the header of every file of weights that `wsi_jax` has written.

    Attributes:
        encoder: description of the encoder, by `Trunk.describe`.
        classes: classes that it was trained on, in the order of the classifier.
        training_ids: clusters of tiles, slides and patients that it was trained or
            selected on; no test slide may be among them.
        made: config, commit, date, machine and versions.
    """

    encoder: dict[str, str]
    classes: tuple[str, ...]
    training_ids: tuple[str, ...]
    made: dict[str, Any]


def to_header(metadata: WeightsMetadata) -> dict[str, str]:
    """Header entries for `pretrained.save`."""
    plain = metadata._asdict()
    plain["seen"] = plain.pop("training_ids")
    return {KEY: json.dumps(plain)}


def read_weights_metadata(path: str | os.PathLike) -> WeightsMetadata | None:
    """Metadata of a file of weights; None for files of other software.

    Raises:
        WeightsError: the file is no safetensors file.
    """
    header = pretrained.read_metadata(path)
    if KEY not in header:
        return None
    plain = json.loads(header[KEY])
    plain["training_ids"] = tuple(plain.pop("seen"))
    plain["classes"] = tuple(plain["classes"])
    return WeightsMetadata(**plain)
