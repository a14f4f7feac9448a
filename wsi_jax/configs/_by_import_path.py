"""The config of a method of one's own, found by its import path.

    wsi-jax train --method my_package.my_method:get_config --manifest my_slides.csv

NAME of `my_package.my_method:NAME` is a function that returns an Experiment, or a class
of methods (a dataclass with `takes`). A class is trained as the method of ours that
takes the same.
"""

import importlib

from wsi_jax import config_fields
from wsi_jax.configs import abmil, attention_sampling, sasha, streaming_clam
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import nearest_or_all
from wsi_jax.types import Takes

LIKE = {
    Takes.features: abmil,
    Takes.two_levels: sasha,
    Takes.slides: streaming_clam,
    Takes.crops: attention_sampling,
}


def get_config(path: str) -> Experiment:
    """The config that "module:name" stands for.

    Raises:
        ValueError: it does not import, or is no config and no method.
    """
    module, _, name = path.partition(":")
    try:
        source = importlib.import_module(module)
    except Exception as error:  # a module may raise whatever it likes
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"{module} does not import ({reason}); run the command where "
            f'`python -c "import {module}"` works'
        ) from error
    if not hasattr(source, name):
        public = [one for one in vars(source) if not one.startswith("_")]
        raise ValueError(f"{module} has no {name!r}{nearest_or_all(name, public)}")
    value, config = getattr(source, name), None
    config_fields.PACKAGES.add(module.partition(".")[0])
    if isinstance(value, type) and hasattr(value, "takes"):
        config = LIKE[value.takes].get_config()
        config.method = value()
    elif callable(value):
        config = value()
    if not isinstance(config, Experiment):
        raise ValueError(
            f"{path} is neither a function that returns an Experiment nor a class of "
            "methods, a dataclass with `takes`"
        )
    return config
