"""Inputs: one class for each kind of what methods take."""

from typing import Any

from wsi_jax.run.inputs.base import Input, LoadedSlide, TilePositions
from wsi_jax.run.inputs.crops import CropInput
from wsi_jax.run.inputs.features import FeatureInput
from wsi_jax.run.inputs.slides import SlideInput
from wsi_jax.run.inputs.two_levels import TwoLevelInput
from wsi_jax.types import Takes

__all__ = [
    "CropInput",
    "FeatureInput",
    "Input",
    "LoadedSlide",
    "SlideInput",
    "TilePositions",
    "TwoLevelInput",
    "input_of",
]

INPUTS: dict[Takes, type[Input]] = {
    Takes.features: FeatureInput,
    Takes.two_levels: TwoLevelInput,
    Takes.slides: SlideInput,
    Takes.crops: CropInput,
}


def input_of(method: Any) -> type[Input]:
    """The kind of input that a method takes."""
    return INPUTS[method.takes]
