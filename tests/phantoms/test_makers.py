"""Makers of cohorts and tiles go on where they stopped, each in its own folder."""

import pytest

from experiments.phantoms.cohort_folder import MakeCohortError
from experiments.phantoms.make_bach import make_bach
from experiments.phantoms.make_cohort import make_cohort
from experiments.phantoms.make_tiles import make_tiles

# What is deleted, and what is then made anew: of a style all tiles.
LOST = {
    make_cohort: ("training/tumor/tumor_001.tif", "training/tumor/tumor_001.tif"),
    make_bach: ("Photos/InSitu/is002.tif", "Photos/InSitu/is002.tif"),
    make_tiles: ("tumor/0003_1.png", "tumor/0003_*.png"),
}
# A field that decides something.
OTHER = {make_cohort: {"seed": 1}, make_bach: {"seed": 1}, make_tiles: {"variants": 3}}


@pytest.mark.parametrize("make", LOST, ids=lambda make: make.__name__)
def test_a_second_run_draws_only_what_is_missing_and_draws_it_the_same(make, made):
    one, (lost, anew) = made(make), LOST[make]
    images = [p for kind in ("tif", "png") for p in one.folder.rglob(f"*.{kind}")]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in images}
    (one.folder / lost).unlink()
    make(one.config(workers=1))
    assert {p: p.read_bytes() for p in images} == {p: b for p, (b, _) in before.items()}
    again = {p for p in images if p.stat().st_mtime_ns != before[p][1]}
    truth = {p for p in again if p.parent.name == "masks"}
    assert again - truth == set(one.folder.glob(anew))
    assert not [p for p in one.folder.rglob(".*") if p.is_file()]


@pytest.mark.parametrize("make", LOST, ids=lambda make: make.__name__)
def test_a_folder_is_named_and_keeps_what_it_has(make, made):
    one, (name, value) = made(make), *OTHER[make].items()
    with pytest.raises(
        MakeCohortError, match=rf"holds .* {name}=.*, asked for is {value}"
    ):
        make(one.config(**OTHER[make]))
    with pytest.raises(MakeCohortError, match=r"add --config\.out=FOLDER"):
        make(type(one.config())())
