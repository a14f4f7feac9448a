"""Configs of every method: a quick variant without weights, and no part that sleeps."""

import dataclasses

import pytest

from wsi_jax import config_fields
from wsi_jax.configs import config_path, methods
from wsi_jax.run.config_file import read_config
from wsi_jax.training.optimiser import Thaw

METHODS = sorted(set(methods()) - {"quick"})


def config_of(name):
    return read_config(config_path(name), "Experiment")


def steps(config):
    """Batches of all trainings of a method."""
    flat = config_fields.flatten(config_fields.to_plain(config))
    return sum(v for name, v in flat.items() if name.endswith(".steps"))


def thaws(config, path=""):
    """Where in a tree something is frozen at first."""
    for field in dataclasses.fields(config):
        value, own = getattr(config, field.name), f"{path}.{field.name}"
        if isinstance(value, Thaw):
            yield own
        elif config_fields.is_config(value):
            yield from thaws(value, own)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_quick_variant_that_needs_no_weights(method):
    quick, full = config_of(f"{method}:quick"), config_of(method)
    config_fields.validate(quick)
    assert type(quick.method) is type(full.method)
    assert all(not trunk.weights for trunk in quick.trunks.values())
    assert steps(quick) < steps(full)


@pytest.mark.parametrize("method", [*METHODS, *(f"{name}:quick" for name in METHODS)])
def test_no_training_ends_within_a_frozen_phase(method):
    """The check looks at `method.thaw`: nothing may be frozen anywhere else."""
    config = config_of(method)
    assert set(thaws(config)) <= {".method.thaw"}
    for _ in thaws(config):
        config.train.steps = config.method.thaw.frozen = 7
        with pytest.raises(ValueError, match=r"steps=7 end before .*frozen=7"):
            config.validate()


def test_quick_alone_is_abmil():
    assert config_of("quick") == config_of("abmil:quick")
