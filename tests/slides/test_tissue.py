"""Tissue is what is coloured on glass, or bright in the dark; nothing else."""

import numpy as np
import pytest

from wsi_jax import config_fields
from wsi_jax.slides.slide import open_slide
from wsi_jax.slides.tissue import Background, Tissue, find_background, tissue_mask

EOSIN, GLASS = (205, 140, 175), (242, 241, 243)


def slide(h=120, w=160, paint=(), background=GLASS, noise=3):
    """A background with rectangles (y, x, h, w, colour) on it."""
    rgb = np.empty((h, w, 3))
    rgb[:] = background
    for y, x, rows, cols, colour in paint:
        rgb[y : y + rows, x : x + cols] = colour
    rgb += np.random.default_rng(0).normal(0, noise, rgb.shape)
    return np.clip(rgb, 0, 255).astype(np.uint8)


def test_a_piece_of_tissue_is_found_where_it_is():
    mask = tissue_mask(slide(paint=[(30, 40, 50, 60, EOSIN)]), Tissue())
    truth = np.zeros_like(mask)
    truth[30:80, 40:100] = True
    assert (mask & truth).sum() / (mask | truth).sum() > 0.93


@pytest.mark.parametrize("background", [(255, 255, 255), GLASS, (0, 0, 0)])
def test_an_empty_slide_of_any_size_has_no_tissue(background):
    for h, w, noise in (
        (120, 160, 0),
        (120, 160, 3),
        (1, 1, 0),
        (1, 200, 0),
        (3, 2, 0),
    ):
        mask = tissue_mask(slide(h, w, background=background, noise=noise), Tissue())
        assert mask.shape == (h, w)
        assert not mask.any() or h < 10  # a slide smaller than a hole is filled


def test_a_slide_full_of_tissue_is_all_tissue():
    """Of two kinds too: Otsu alone would call the paler half background."""
    for colour in (EOSIN, (120, 70, 150), (228, 190, 210)):
        assert tissue_mask(slide(background=colour), Tissue()).all()
    half = slide(paint=[(0, 0, 120, 80, (110, 60, 150))], background=(215, 160, 190))
    assert tissue_mask(half, Tissue()).all()


def test_areas_are_in_um2():
    paint = [(20, 20, 12, 12, EOSIN), (60, 60, 50, 60, EOSIN), (80, 80, 12, 12, GLASS)]
    rgb = slide(paint=paint)
    for mpp, dust_stays, hole_stays in ((4.0, False, False), (32.0, True, True)):
        config = Tissue(mpp=mpp, smooth_um=mpp, max_hole_um2=40_000.0)
        mask = tissue_mask(rgb, config)
        assert mask[26, 26] == dust_stays
        assert mask[86, 86] != hole_stays
        assert mask[70, 70]


def test_fluorescence_is_bright_in_the_dark():
    rgb = slide(paint=[(30, 40, 50, 60, (5, 10, 120))], background=(4, 4, 6))
    mask = tissue_mask(rgb, Tissue())
    assert mask[35:75, 45:95].all()
    assert not mask[:25].any()
    np.testing.assert_array_equal(
        mask, tissue_mask(rgb, Tissue(background=Background.DARK))
    )


def test_a_black_frame_around_glass_is_not_tissue():
    rgb = slide(paint=[(0, 0, 65, 160, (0, 0, 0)), (75, 40, 40, 60, EOSIN)])
    mask = tissue_mask(rgb, Tissue())
    assert not mask[:60].any()
    assert mask[80:110, 45:95].all()
    assert not mask[80:110, 5:30].any()


@pytest.mark.parametrize("fill", [(0, 0, 0), (255, 255, 255), (9, 9, 9)])
@pytest.mark.parametrize("dark", [True, False])
def test_what_was_never_scanned_does_not_decide_about_bright_or_dark(fill, dark):
    """A scan on a canvas of twenty-five times its area, of any colour."""
    around, tissue = ((4, 4, 6), (5, 10, 120)) if dark else (GLASS, EOSIN)
    scan = slide(paint=[(30, 40, 50, 60, tissue)], background=around)
    rgb = np.full((600, 800, 3), fill, np.uint8)
    rgb[100:220, 200:360] = scan
    stated = None if fill == (0, 0, 0) else fill
    expected = Background.DARK if dark else Background.BRIGHT
    assert find_background(rgb, Tissue(), stated) is expected
    assert find_background(scan, Tissue()) is expected
    if not dark and stated is None:
        alone = tissue_mask(scan, Tissue(background=expected))
        assert (tissue_mask(rgb, Tissue())[100:220, 200:360] == alone).mean() > 0.98


@pytest.mark.parametrize(
    "wrong", [{"mpp": 0.0}, {"smooth_um": -1.0}, {"saturation": (0.3, 0.1)}]
)
def test_wrong_settings_name_their_flag(wrong):
    with pytest.raises(ValueError, match=rf"--config\.tissue\.{next(iter(wrong))}"):
        config_fields.validate(Tissue(**wrong), "config.tissue")


@pytest.mark.parametrize(
    ("name", "given", "mpp", "fraction"),
    [
        ("CMU-1-Small-Region.svs", None, 8.0, (0.3, 0.45)),
        ("TCGA-CR-7395-01A-01-TS1.pyramid.tif", 0.5, 8.0, (0.6, 0.7)),
        ("multi_frame_jpeg_camelyon_challenge_image.dcm", None, 32.0, (0.15, 0.3)),
        ("test3-DAPI-2-(387).ndpi", None, 8.0, (0.2, 0.5)),
        ("kidney-48-5.tif", 8.0, 8.0, (0.002, 0.005)),
    ],
)
def test_real_slides(shared, name, given, mpp, fraction):
    with open_slide(shared / "data/slides" / name, given) as slide:
        mask = tissue_mask(slide.overview(mpp), Tissue(mpp=mpp))
    assert fraction[0] < mask.mean() < fraction[1]
