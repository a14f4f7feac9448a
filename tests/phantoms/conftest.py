"""A small one of everything that the makers make, for all tests here."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from experiments.phantoms.artefacts import Artefacts
from experiments.phantoms.cohort_folder import Maker
from experiments.phantoms.make_bach import MakeBach, make_bach
from experiments.phantoms.make_cohort import MakeCohort, make_cohort
from experiments.phantoms.make_tiles import MakeTiles, make_tiles
from experiments.phantoms.presets import Preset

SMALL = {
    make_cohort: MakeCohort(
        preset=Preset.DIFFUSE,
        n_train=4,
        n_val=2,
        n_test=4,
        side_px=512,
        styles=8,
        artefacts=Artefacts(mpps=(0.5, 0.8)),
    ),
    make_bach: MakeBach(per_class=3, patients=3, styles=8, height=192, width=256),
    make_tiles: MakeTiles(styles=6, variants=2, size_px=32),
}


@dataclasses.dataclass
class Made:
    """A folder that a maker has made; left as it is found."""

    make: Callable[[Any], pathlib.Path]
    folder: pathlib.Path

    def config(self, **changes) -> Maker:
        """What it was made with, or with changes."""
        settings = {"out": str(self.folder), "workers": 2} | changes
        return dataclasses.replace(SMALL[self.make], **settings)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """made(maker) -> what it made, once."""
    every = {}

    def folder_of(make) -> Made:
        if make not in every:
            every[make] = Made(make, tmp_path_factory.mktemp(make.__name__))
            make(every[make].config())
        return every[make]

    return folder_of


@pytest.fixture
def cohort(made) -> pathlib.Path:
    """The folder of a cohort."""
    return made(make_cohort).folder
