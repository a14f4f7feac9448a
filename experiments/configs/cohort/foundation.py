"""Your own slides and labels: ABMIL on features of an encoder that others have trained.

    python -m experiments.cohort \
        --config experiments/configs/cohort/foundation.py:uni2_h \
        --config.data.manifest=my_slides.csv \
        --config.encoder.weights=uni2_h.safetensors

Behind the colon stands a name of `wsi_jax/nets/encoders.toml`, which says where the
file is to be had. On an accelerator add `--config.encoder.dtype=bfloat16`.
"""

from experiments.configs.cohort import abmil
from wsi_jax.nets.foundation_models import foundation_model
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid


def get_config(name: str = "lunit_s16") -> Experiment:
    chosen = foundation_model(name)
    config = abmil.get_config()
    config.run_dir = f"runs/{name}"
    config.encoder = chosen.encoder
    # That no one encodes a cohort with random weights by forgetting to name theirs.
    config.encoder.weights = f"{name}.safetensors"
    config.grid = Grid(mpp=chosen.mpp or 0.5, size_px=chosen.tile_px)
    return config
