"""Which stains are strange to a model: drawn ones, and real ones of several sites."""

import csv
import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from wsi_jax.slides.slide import open_slide
from wsi_jax.slides.stain import (
    Stain,
    StainRange,
    measure_stain,
    stain_columns,
    stain_range,
    unfamiliar,
)
from wsi_jax.slides.tissue import Background, Tissue, find_background, tissue_mask

# Optical density of haematoxylin, eosin and DAB (Ruifrok and Johnston, 2001).
DENSITY = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def drawn(rng, amounts, positive=1.0, light=(255, 255, 255)) -> np.ndarray:
    """An overview with a disc of tissue on glass, stained by `amounts` [3].

    DAB lies on a share `positive` of the tissue, in blobs.
    """
    field = ndimage.gaussian_filter(rng.normal(size=(96, 96)), 4)
    amount = np.asarray(amounts) * rng.uniform(0.6, 1.4, (96, 96, 3))
    amount[..., 2] *= field >= np.quantile(field, 1 - positive)
    y, x = np.indices((96, 96)) - 48
    amount *= (np.hypot(y, x) < 40)[..., None]
    return (np.array(light) * np.exp(-amount @ DENSITY)).round().astype(np.uint8)


def stain_of_image(image: np.ndarray, mpp: float = 8.0) -> Stain:
    tissue = tissue_mask(image, Tissue(mpp=mpp, min_area_um2=1e3))
    return measure_stain(image, tissue, dark=False)


@pytest.fixture(scope="module")
def haematoxylin_eosin() -> StainRange:
    """The range of a model that has learnt from one laboratory's H&E."""
    rng = np.random.default_rng(0)
    return stain_range(stain_of_image(drawn(rng, (0.5, 0.4, 0))) for _ in range(8))


@pytest.mark.parametrize("positive", [0.15, 0.3, 0.6, 1.0])
def test_dab_is_strange_to_a_model_of_h_and_e(haematoxylin_eosin, positive):
    rng = np.random.default_rng(1)
    for haematoxylin, dab in itertools.product((0.1, 0.3, 0.6), (0.6, 1.2)):
        stain = stain_of_image(drawn(rng, (haematoxylin, 0, dab), positive))
        assert "absorbs other colours" in unfamiliar(stain, haematoxylin_eosin)


def test_h_and_e_of_other_laboratories_is_not(haematoxylin_eosin):
    rng = np.random.default_rng(2)
    for _ in range(50):
        amounts = *rng.uniform(0.15, 0.9, 2), 0
        light = rng.uniform(215, 255, 3)  # another scanner's white
        stain = stain_of_image(drawn(rng, amounts, light=light))
        assert unfamiliar(stain, haematoxylin_eosin) == ""


def test_what_it_has_learnt_from_is_never_strange_to_a_model():
    rng = np.random.default_rng(3)
    dab = [stain_of_image(drawn(rng, (0.3, 0, 0.8), 0.5)) for _ in range(6)]
    learnt = stain_range(dab)
    assert [unfamiliar(stain, learnt) for stain in dab] == [""] * 6
    eosin = stain_of_image(drawn(rng, (0.3, 0.8, 0)))
    assert "absorbs" in unfamiliar(eosin, learnt)


def test_bright_and_dark_are_strange_to_each_other(haematoxylin_eosin):
    dark = Stain(True, (0.3, 0.3, 0.4))
    assert "fluorescence" in unfamiliar(dark, haematoxylin_eosin)
    learnt = stain_range([dark])
    assert unfamiliar(dark, learnt) == ""
    assert "bright" in unfamiliar(Stain(False, (0.3, 0.5, 0.2)), learnt)
    assert unfamiliar(dark, StainRange()) == ""  # a model that remembers no stain


def test_columns_tell_a_stain():
    columns = {"stain_red": 0.25, "stain_green": 0.5, "stain_blue": 0.25}
    assert stain_columns(Stain(False, (0.25, 0.500001, 0.25))) == columns
    assert stain_columns(None) == dict.fromkeys(columns, "")


def test_at_most_one_real_slide_in_fifty_of_another_site_is_strange(shared):
    """H&E of five sites, each in turn all that a model has learnt from."""
    sites = real_stains(shared / "data")
    reasons = [
        unfamiliar(stain, stain_range(learnt))
        for name, learnt in sites.items()
        for other, stains in sites.items()
        if other != name
        for stain in stains
    ]
    assert len(reasons) > 250
    assert np.mean([reason != "" for reason in reasons]) <= 0.02


def test_real_fluorescence_is_strange_to_a_model_of_h_and_e(shared, haematoxylin_eosin):
    with open_slide(shared / "data/slides/test3-DAPI-2-(387).ndpi") as slide:
        overview = slide.overview(8.0)
        background = find_background(overview, Tissue(), slide.fill_rgb)
    tissue = tissue_mask(overview, Tissue())
    stain = measure_stain(overview, tissue, background is Background.DARK)
    assert "fluorescence" in unfamiliar(stain, haematoxylin_eosin)


def real_stains(data) -> dict[str, list[Stain]]:
    """Stains by site: mosaics of tiles of two organs, breast, and whole slides."""
    rng = np.random.default_rng(0)
    with open(data / "lc25000" / "index.csv", newline="") as file:
        names = [row[0] for row in csv.reader(file)]
    sites = {}
    for organ in ("colon", "lung"):
        tiles = [name for name in names if name.startswith(organ)]
        chosen = rng.choice(tiles, (20, 6), replace=False)
        sites[organ] = [
            stain_of_image(
                np.concatenate([shrunk(data / "lc25000" / name) for name in some])
            )
            for some in chosen
        ]
    breast = sorted((data / "ucsb_breast" / "images").iterdir())[::2]
    sites["breast"] = [stain_of_image(shrunk(path)) for path in breast]
    for name, mpp in (
        ("CMU-1-Small-Region.svs", None),
        ("TCGA-CR-7395-01A-01-TS1.pyramid.tif", 0.25),
    ):
        with open_slide(data / "slides" / name, mpp) as slide:
            sites[name] = [stain_of_image(slide.overview(8.0))]
    return sites


def shrunk(path) -> np.ndarray:
    """A tile of half a micrometre a pixel as an overview shows it."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        return np.asarray(image.resize([side // 16 for side in image.size], Image.BOX))
