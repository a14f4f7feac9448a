"""A config read from words on a command line, in this process."""

import contextlib
import functools
import sys

from absl import flags
from ml_collections import config_flags

from wsi_jax.commands import config_command_line


@contextlib.contextmanager
def config_from(*words, kind="Experiment"):
    """Gives the config; at the end of the block absl has forgotten its flags."""
    before, sys.argv = sys.argv, ["command", *map(str, words)]
    config_flags.DEFINE_config_file("config")
    try:
        config_command_line.parse(sys.argv, kind)
        yield flags.FLAGS.config
    finally:
        sys.argv = before
        for name in [n for n in flags.FLAGS if n.partition(".")[0] == "config"]:
            delattr(flags.FLAGS, name)


def with_field(config, path, value):
    """The config, a field of it set: "train.steps"."""
    *above, name = path.split(".")
    setattr(functools.reduce(getattr, above, config), name, value)
    return config
