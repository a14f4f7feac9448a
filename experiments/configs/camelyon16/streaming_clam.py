"""CAMELYON16, whole slides: StreamingCLAM, ResNet-34 at 0.5 um/px, end to end.

    python -m experiments.camelyon16 \
        --config experiments/configs/camelyon16/streaming_clam.py \
        --config.data.root=CAMELYON16 --config.data.splits=SPLITS \
        --config.method.trunk.weights=resnet34.safetensors

The published training (Dooper et al. 2023; the schedule is that of its code): 25 epochs
of 216 slides with the trunk as ImageNet left it, then 10 with all of it, eight slides
to an update. SPLITS is the folder of its train_0.csv, val_0.csv and test.csv. Not
measured here: the slides are 700 GB.
"""

from experiments.camelyon16 import Camelyon16
from wsi_jax.methods.streaming_clam import StreamingCLAM
from wsi_jax.nets.encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser, Thaw
from wsi_jax.types import Dtype

EPOCH = 216


def get_config() -> Experiment:
    return Experiment(
        data=Camelyon16(),
        grid=Grid(mpp=0.5, size_px=256, min_tissue=0.01),
        encoder=None,
        method=StreamingCLAM(
            trunk=Encoder(
                depth=Depth.resnet34, norm=NormKind.frozen, dtype=Dtype.bfloat16
            ),
            tile_px=2048,
            thaw=Thaw(frozen=25 * EPOCH, warmup=4 * EPOCH, slower=0.1),
        ),
        train=Train(
            steps=35 * EPOCH,
            batch=1,
            balanced=True,
            class_weights=False,
            validate_every=EPOCH,
            save_every=EPOCH // 4,
            optimiser=Optimiser(accumulate=8),
            patience=0,
        ),
    )
