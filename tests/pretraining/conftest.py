"""One folder of labelled tiles and one finished pre-training, for all tests here."""

import pathlib

import labelled_tiles
import pytest

from experiments.pretraining import pretrain_tiles


@pytest.fixture(scope="session")
def tiles(tmp_path_factory) -> pathlib.Path:
    """A folder of labelled tiles."""
    folder = tmp_path_factory.mktemp("tiles")
    labelled_tiles.write(folder)
    return folder


@pytest.fixture(scope="session")
def trained(tiles, tmp_path_factory) -> pathlib.Path:
    """The folder of a finished pre-training with labels; not to be changed."""
    folder = tmp_path_factory.mktemp("pretrain")
    path = pretrain_tiles.run(labelled_tiles.small(tiles), folder)
    assert path == folder / "encoder.safetensors"
    return folder
