"""Encoders of a config, with the shapes that their files of weights have."""

from collections.abc import Collection

from wsi_jax.nets.encoder_of_weights import encoder_of_weights
from wsi_jax.run.config import Experiment


def adopt_encoders(config: Experiment, overrides: Collection[str]) -> None:
    """Takes each trunk as the weights describe it that were named beside the config.

    Args:
        config: changed in place.
        overrides: fields that were set, as "encoder.weights"; they stay as they are.

    Raises:
        ValueError: a file of weights that cannot be read.
    """
    for flag, trunk in config.trunks.items():
        if f"{flag}.weights" in overrides:
            prefix = f"{flag}."
            given = [n.removeprefix(prefix) for n in overrides if n.startswith(prefix)]
            owner, _, name = flag.rpartition(".")
            of = getattr(config, owner) if owner else config
            setattr(of, name, encoder_of_weights(trunk, given))
