"""Imports TensorFlow without letting it take accelerators."""

import functools
import os
from types import ModuleType


@functools.cache
def import_tf() -> ModuleType:
    """Imports TensorFlow for its data sets alone: quiet, and off the accelerators.

    Left to itself TensorFlow takes all of a GPU's memory, and JAX is left with none.

    RuntimeError: TensorFlow was used before and holds an accelerator already.
    """
    # Read once, when TensorFlow is first imported: errors only, and no line on oneDNN,
    # whose kernels tf.data does not use.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError:
            raise RuntimeError(
                f"TensorFlow already holds a {kind}; call "
                "wsi_jax.data.tensorflow.import_tf() before anything uses TensorFlow"
            ) from None
    return tf


def import_tfds() -> ModuleType:
    """Imports TensorFlow Datasets, as `import_tf`, without progress bars."""
    import_tf()
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    return tfds
