"""One small synthetic cohort, for all tests here."""

import pathlib

import pytest

from experiments.phantoms.artefacts import Artefacts
from experiments.phantoms.make_cohort import MakeCohort, make_cohort
from experiments.phantoms.presets import Preset


@pytest.fixture(scope="session")
def small():
    """small(folder, **changes) -> config of a cohort of ten slides."""

    def config(folder, **changes) -> MakeCohort:
        settings = {
            "preset": Preset.DIFFUSE,
            "n_train": 4,
            "n_val": 2,
            "n_test": 4,
            "side_px": 512,
            "styles": 8,
            "workers": 2,
            "artefacts": Artefacts(mpps=(0.5, 0.8)),
        }
        return MakeCohort(out=str(folder), **(settings | changes))

    return config


@pytest.fixture(scope="session")
def cohort(small, tmp_path_factory) -> pathlib.Path:
    """The folder of a cohort; left as it is found."""
    folder = tmp_path_factory.mktemp("cohort")
    make_cohort(small(folder))
    return folder
