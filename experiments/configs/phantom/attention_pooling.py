"""A practice cohort: every tile of 32 um is scored, the best and worst are pooled.

    python -m experiments.cohort \
        --config experiments/configs/phantom/attention_pooling.py \
        --config.data.manifest=cohorts/fine_only/slides.csv \
        --config.method.scorer.weights=encoder.safetensors \
        --config.method.trunk.weights=encoder.safetensors

The encoder is that of `pretrain/tiles.py:tile_encoder`; both nets go on from it.
`--config.method.head.normaliser=SOFTMAX` pools as ABMIL does,
`--config.method.worst=0` takes the best tiles alone, `--config.method.joint=True`
trains both nets at once.
"""

from experiments.configs.phantom import balanced, end_to_end, optimiser
from experiments.configs.pretrain import tiles
from wsi_jax.methods.attention_pooling import AttentionPooling, Scoring
from wsi_jax.nets.tile_pooling import PoolingHead
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid


def get_config() -> Experiment:
    pretrained = tiles.tile_encoder()
    method = AttentionPooling(
        scorer=pretrained.method.encoder,
        trunk=tiles.tile_encoder().method.encoder,
        mpp=pretrained.mpp,
        tile_px=32,
        best=16,
        worst=16,
        scoring=Scoring(
            steps=40,
            batch=8,
            validate_every=20,
            optimiser=optimiser(2e-3),
            tiles=4,
            renew=20,
        ),
        trunk_rate=0.1,
        head=PoolingHead(width=64, attention_width=32),
        chunk=None,
    )
    grid = Grid(mpp=16.0, size_px=2, min_tissue=0.5)
    train = balanced(2e-3, steps=100, batch=8, validate_every=25, save_every=50)
    return end_to_end(method, grid, train)
