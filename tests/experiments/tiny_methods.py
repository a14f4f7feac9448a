"""Every method in seconds: `tiny_methods.py:NAME`. As `tiny.py` in all else."""

import pathlib
import runpy

from wsi_jax.methods.attention_pooling import AttentionPooling, Scoring
from wsi_jax.methods.attention_sampling import AttentionSampling
from wsi_jax.methods.mil import CLAM, Max, Mean
from wsi_jax.methods.sasha import SASHA, HAFEDStage, PolicyStage, UpdaterStage
from wsi_jax.methods.streaming_clam import Augment, StreamingCLAM
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder
from wsi_jax.nets.crop_options import HeadConfig
from wsi_jax.nets.crop_sampler import SamplingConfig
from wsi_jax.nets.overview_attention import OverviewConfig
from wsi_jax.nets.tile_pooling import PoolingHead
from wsi_jax.slides.grid import Grid

TINY = pathlib.Path(__file__).with_name("tiny.py")
TRUNK = {"blocks": (1,), "width": 8, "scale": 1.0}
STAGE = {"steps": 20, "batch": 5, "validate_every": 10}


def pooling(joint):
    trunk = ConvNeXtEncoder(**TRUNK, stem=4)
    return AttentionPooling(
        scorer=trunk,
        trunk=trunk,
        mpp=4.0,
        tile_px=16,
        best=2,
        worst=2,
        joint=joint,
        scoring=Scoring(**STAGE, tiles=2, renew=3, candidates=12, chunk=16),
        head=PoolingHead(width=8, attention_width=3),
        chunk=16,
    )


def sampling():
    return AttentionSampling(
        trunk=ConvNeXtEncoder(**TRUNK, stem=4),
        mpps=(4.0, 8.0),
        crop_px=16,
        crops=4,
        overview=OverviewConfig(channels=4, layers=1),
        head=HeadConfig(width=8, unit_length=True),
        sampling=SamplingConfig(draws=2),
    )


def streaming():
    trunk = ConvNeXtEncoder(**TRUNK, stem=8)
    still = Augment(probability=0.0)
    return StreamingCLAM(
        trunk=trunk, tile_px=64, pool=4, width=8, attention=4, augment=still
    )


METHODS = {
    "mean": lambda: Mean(width=8, standardise=True),
    "max": lambda: Max(width=8, standardise=True),
    "clam": lambda: CLAM(width=8, attention=4, sampled=2, standardise=True),
    "streaming": streaming,
    "sampling": sampling,
    "pooling": lambda: pooling(False),
    "joint": lambda: pooling(True),
    "sasha": lambda: SASHA(
        children=2,
        standardise=True,
        hafed=HAFEDStage(branches=(2, 2), mask_top=(4, 4), **STAGE),
        updater=UpdaterStage(**STAGE),
        policy=PolicyStage(**STAGE, epochs=2, chunk=6),
    ),
}
CROPS = ("sampling", "pooling", "joint")


def get_config(name="abmil"):
    made = runpy.run_path(str(TINY))["get_config"]()
    made.train.steps, made.train.batch, made.train.log_every = 20, 5, 1
    made.heatmaps = 0
    if name in METHODS:
        made.method = METHODS[name]()
    if name in CROPS or name == "streaming":
        made.encoder = None
        made.grid = Grid(mpp=16.0, size_px=4, min_tissue=0.5)
    if name == "streaming":
        made.grid = Grid(mpp=2.0, size_px=32, min_tissue=0.5)
    return made
