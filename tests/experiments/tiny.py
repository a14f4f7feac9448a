"""A whole experiment in seconds: small slides, a small encoder, thirty steps."""

from wsi_jax.data.bags import Loading
from wsi_jax.data.tile_batches import Reading
from wsi_jax.methods.mil import ABMIL
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def get_config() -> Experiment:
    return Experiment(
        data=Manifest(),
        grid=Grid(mpp=2.0, size_px=32, min_tissue=0.5),
        encoder=Encoder(stages=1, width=8),
        method=ABMIL(width=8, attention=4, standardise=True),
        train=Train(
            steps=30,
            batch=8,
            log_every=5,
            validate_every=10,
            save_every=10,
            optimiser=Optimiser(learning_rate=1e-2),
        ),
        reading=Reading(threads=2),
        loading=Loading(min_bucket=64, threads=2),
        heatmaps=1,
    )
