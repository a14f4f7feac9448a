"""What the quick variants of methods that train on pixels share."""

from typing import Any

from wsi_jax.nets.conv_encoder import ConvNeXtEncoder
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def small_trunk() -> ConvNeXtEncoder:
    """One block of 32 features, small enough to learn from nothing on a laptop."""
    return ConvNeXtEncoder(
        blocks=(1,),
        width=32,
        scale=1.0,
        mean=(0.7, 0.55, 0.7),
        std=(0.2, 0.2, 0.2),
    )


def quick_optimiser() -> Optimiser:
    """For a small trunk and head that learn from nothing."""
    return Optimiser(learning_rate=2e-3, warmup=0.1, weight_decay=1e-3)


def quick_train(**fields: Any) -> Train:
    """A training of minutes on a few dozen small slides."""
    common = {"batch": 8, "validate_every": 20, "save_every": 40}
    return Train(
        balanced=True,
        class_weights=False,
        optimiser=quick_optimiser(),
        **(common | fields),
    )
