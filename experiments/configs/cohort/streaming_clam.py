"""Your own slides and labels, whole: StreamingCLAM for what is diffuse, or anywhere.

    python -m experiments.cohort \
        --config experiments/configs/cohort/streaming_clam.py \
        --config.data.manifest=my_slides.csv \
        --config.method.trunk.weights=resnet34.safetensors

The published method's other task is of this kind: a translocation of MYC in lymphoma
(Dooper et al. 2023). Where a label is all over the tissue a coarser look may do: 1
um/px here, a fourth of the work. Any number of classes. Steps (`train.steps`) and those
with a frozen trunk (`method.thaw.frozen`) are for some 200 training slides.
"""

from experiments.configs.camelyon16 import streaming_clam
from wsi_jax.run.config import Experiment, Manifest


def get_config() -> Experiment:
    config = streaming_clam.get_config()
    config.data = Manifest()
    config.grid.mpp = 1.0
    return config
