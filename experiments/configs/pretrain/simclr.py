"""An encoder of 1 um/px from tiles whose labels it does not see (SimCLR).

    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/simclr.py --config.tiles=FOLDER

Labels serve a linear probe alone, which is what the report tells of the encoder: it
learns from training clusters, is chosen on validation clusters and judged on those of
the test. `--config.beside=encoder.safetensors` reports, on the same tiles, that of an
encoder trained with labels, by `phantom.py` for example. Not measured at this length.
"""

from experiments.configs.pretrain import lc25000
from experiments.pretraining.pretrain_tiles import PretrainFolder
from experiments.pretraining.sim_clr import SimCLR


def get_config() -> PretrainFolder:
    config = lc25000.get_config()
    config.mpp, config.groups = 1.0, ()
    config.method = SimCLR(encoder=config.method.encoder)
    config.train.batch, config.train.steps = 128, 4200
    config.train.validate_every = config.train.save_every = 300
    config.train.optimiser.learning_rate = 2e-3
    config.train.optimiser.weight_decay = 1e-3
    return config
