"""Every slide is on the sheet, refused ones first; small pictures, pages of a few."""

import numpy as np
import pytest
from PIL import Image

from wsi_jax.report.contact_sheet import SIDE_PX, Contact, contact_sheet, shrink

GREEN = (0, 158, 115)


def slide(name, reason="", size=(800, 1200)):
    overview = np.full((*size, 3), 240, np.uint8)
    tissue = np.zeros(size, bool)
    tissue[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = True
    overview[tissue] = (200, 80, 160)
    picture = shrink(overview, tissue)
    return Contact(name, picture, "12 tiles, 3 mm2, 0.5 um/px (property)", reason)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("size", [(800, 1200), (1, 2000), (40, 30)])
def test_a_picture_is_small_and_in_proportion(size):
    overview = np.zeros((*size, 3), np.uint8)
    image, tissue = shrink(overview, np.ones(size, bool))
    assert image.shape == (*tissue.shape, 3)
    assert max(tissue.shape) == SIDE_PX
    for n, small in zip(size, tissue.shape, strict=True):
        assert abs(small - n * SIDE_PX / max(size)) <= 1
    assert tissue.all()
    assert image.nbytes + tissue.nbytes <= 4 * SIDE_PX**2


def test_the_outline_is_around_the_tissue(tmp_path):
    one = slide("a")
    (path,) = contact_sheet([one], tmp_path / "tissue.png")
    sheet = pixels(path)
    y, x = np.nonzero((sheet == GREEN).all(-1))
    h, w = one.picture.tissue.shape
    inside = np.argwhere(one.picture.tissue)
    outline = np.array([y.max() - y.min(), x.max() - x.min()]) + 1
    np.testing.assert_array_equal(outline, np.ptp(inside, 0) + 1 + 4)
    tissue = (sheet == (200, 80, 160)).all(-1)
    assert tissue.sum() >= one.picture.tissue.sum() - 2 * (h + w)
    whole = one.picture._replace(tissue=np.ones((h, w), bool))
    (path,) = contact_sheet([one._replace(picture=whole)], path)
    assert (pixels(path) == GREEN).all(-1).sum() == h * w - (h - 4) * (w - 4)


def test_pages_hold_every_slide_and_refused_ones_come_first(tmp_path):
    slides = [slide(f"s{i}", "broken" if i == 3 else "") for i in range(6)]
    slides.append(Contact("s6", None, "", "no file s6.svs; mend its path " * 9))
    paths = contact_sheet(slides, tmp_path / "tissue.png", per_page=3)
    assert [p.name for p in paths] == ["tissue.png", "tissue_2.png", "tissue_3.png"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    red = [(pixels(path) == (0xB8, 0x3A, 0)).all(-1) for path in paths]
    assert [page.any() for page in red] == [True, False, False]
    cells = np.split(red[0][:, 6 : 6 + 3 * 192], 3, 1)
    assert [cell.any() for cell in cells] == [True, True, False]
