"""The encoder that a file of weights of ours was made for: it says so itself."""

import ast
import dataclasses
import enum
import os
from collections.abc import Collection
from typing import Any

from wsi_jax.nets.conv_encoder import ConvNeXtEncoder, Encoder
from wsi_jax.nets.trunk import Trunk
from wsi_jax.nets.vit_encoder import ViTEncoder
from wsi_jax.nets.weights_metadata import read_weights_metadata

KINDS = (Encoder, ConvNeXtEncoder, ViTEncoder)
# Fields that a file does not settle.
FREE = {"dtype", "weights", "seed", "pretrained_on"}


def encoder_of_weights(like: Trunk, given: Collection[str] = ()) -> Trunk:
    """A trunk as its file of weights describes it.

    Args:
        like: its `weights` are the file; the file does not settle its dtype.
        given: names of fields that stay as they are in `like`.

    Returns:
        `like` itself where the file is not there, or of another software or version.

    Raises:
        WeightsError: the file is no safetensors file.
    """
    if not like.weights or not os.path.isfile(like.weights):
        return like
    metadata = read_weights_metadata(like.weights)
    if metadata is None:
        return like
    names = set(metadata.encoder) - FREE
    for kind in KINDS:
        fields = {field.name: field for field in dataclasses.fields(kind)}
        if names == set(fields) - FREE:
            kept = FREE | set(given)
            settled = {n: _value(fields[n], metadata.encoder[n]) for n in names - kept}
            own = {n: getattr(like, n) for n in kept & set(fields) if hasattr(like, n)}
            return kind(**settled | own)
    return like


def _value(field: dataclasses.Field, text: str) -> Any:
    """A field from the text of `Trunk.describe`."""
    if isinstance(field.type, type) and issubclass(field.type, enum.Enum):
        return field.type[text]
    return text if field.type is str else ast.literal_eval(text)
