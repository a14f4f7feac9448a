"""What is written is read back; a mask is the centres inside lesions, less holes."""

import os
import tracemalloc

import numpy as np
import pytest
from skimage import draw

from wsi_jax.slides import annotations
from wsi_jax.slides.annotations import AnnotationError, Polygon, read_asap, write_asap


def box(y, x, h, w, group="_0"):
    corners = [(y, x), (y, x + w), (y + h, x + w), (y + h, x)]
    return Polygon("a", group, np.array(corners, float))


def rasterise(*polygons, shape=(40, 40), mpp=1.0, slide_mpp=1.0):
    return annotations.rasterise(polygons, shape, mpp, slide_mpp)


def test_read_is_the_inverse_of_write(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "tumor_001.xml"
    written = [
        Polygon(f'<{i}> & "é"', group, rng.random((3 + i, 2)) * 1e5)
        for i, group in enumerate(("_0", "_2", "Tumor", "None"))
    ]
    for some in (written, []):
        write_asap(path, some)
        back = read_asap(path)
        assert [p[:2] for p in back] == [p[:2] for p in some]
        for a, b in zip(back, some, strict=True):
            np.testing.assert_array_equal(a.vertices, b.vertices)
    assert [path.name for path in tmp_path.iterdir()] == ["tumor_001.xml"]


CAMELYON = """<?xml version="1.0"?>
<ASAP_Annotations><Annotations>
<Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="_0" Color="#F4FA58">
<Coordinates><Coordinate Order="1" X="30.5" Y="2" /><Coordinate Order="0" X="3" Y="4" />
<Coordinate Order="2" X="5" Y="60" /></Coordinates></Annotation>
<Annotation Name="dot" Type="Dot" PartOfGroup="None" Color="#F4FA58">
<Coordinates><Coordinate Order="0" X="1" Y="1" /></Coordinates></Annotation>
</Annotations><AnnotationGroups><Group Name="_0" PartOfGroup="None" Color="#00ff00">
<Attributes /></Group></AnnotationGroups></ASAP_Annotations>"""


def test_camelyons_own_form_is_read(tmp_path):
    (tmp_path / "tumor_001.xml").write_text(CAMELYON)
    (polygon,) = read_asap(tmp_path / "tumor_001.xml")
    assert polygon[:2] == ("Annotation 0", "_0")
    np.testing.assert_array_equal(polygon.vertices, [(4, 3), (2, 30.5), (60, 5)])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (CAMELYON[:300], "not a plain XML"),
        ("<html></html>", "<html>"),
        (CAMELYON.replace('"30.5"', '"3o.5"'), "Annotation 0"),
        (CAMELYON.replace('"30.5"', '"nan"'), "Annotation 0"),
        (CAMELYON.replace('Y="2"', ""), "Annotation 0"),
        (
            '<!DOCTYPE a [<!ENTITY b "bbb">]><ASAP_Annotations>&b;</ASAP_Annotations>',
            "not a plain XML",
        ),
        (CAMELYON.replace("1.0", '1.0" encoding="klingon'), "not a plain XML"),
        (CAMELYON.replace("1.0", '1.0" encoding="shift-jis'), "not a plain XML"),
        ("<a>" * 20_000, "not a plain XML"),
        (CAMELYON.replace('"30.5"', '"1e300"'), "Annotation 0"),
        (CAMELYON.replace('"30.5"', f'"{"9" * 400}"'), "Annotation 0"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, says):
    path = tmp_path / "tumor_009.xml"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=rf"(?s)tumor_009\.xml.*{says}"):
        read_asap(path)


def test_a_file_that_is_too_large_or_none_at_all_is_named(tmp_path, monkeypatch):
    """A pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe.xml")
    with pytest.raises(AnnotationError, match=r"pipe\.xml is not a regular file"):
        read_asap(tmp_path / "pipe.xml")
    path = tmp_path / "large.xml"
    path.write_text(CAMELYON + " " * 2**20)
    assert read_asap(path)
    monkeypatch.setattr(annotations, "MAX_BYTES", 2**20)
    with pytest.raises(AnnotationError, match=r"large\.xml has more than 1 MiB"):
        read_asap(path)


def test_intricate_outlines_take_little_memory_and_have_a_limit(monkeypatch):
    """However often they cross the mask's rows."""
    teeth = np.arange(2_000)
    zigzag = np.stack([np.where(teeth % 2, 500.0, 0.0), teeth * 0.2], -1)
    fill = lambda: rasterise(Polygon("", "_0", zigzag), shape=(500, 400))
    masks, peaks = [], []
    for chunk in (annotations._CHUNK, 1 << 40):
        monkeypatch.setattr(annotations, "_CHUNK", chunk)
        tracemalloc.start()
        masks.append(fill())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    np.testing.assert_array_equal(*masks)
    assert 3 * peaks[0] < peaks[1]
    monkeypatch.setattr(annotations, "MAX_CROSSINGS", 10**5)
    with pytest.raises(AnnotationError, match=r"cross rows.* 2000 vertices"):
        fill()


@pytest.mark.parametrize("chunk", [1, 300, 1 << 20])
def test_fill_is_the_centres_inside(chunk, monkeypatch):
    """Against a point-in-polygon test of every pixel; half of each lies outside."""
    monkeypatch.setattr(annotations, "_CHUNK", chunk)
    for seed in range(5):
        vertices = np.random.default_rng(seed).random((4 + 5 * seed, 2)) * 60 - 5
        mask = rasterise(Polygon("", "_0", vertices), shape=(40, 50))
        expected = draw.polygon2mask((40, 50), vertices - 0.5)
        np.testing.assert_array_equal(mask, expected)
        assert mask.any()


def test_area_is_kept_at_any_scale():
    turn = np.linspace(0, 2 * np.pi, 500, endpoint=False)
    circle = np.stack([np.sin(turn), np.cos(turn)], -1) * 900 + 1000
    for mpp in (0.5, 1.7, 4.0):
        form = {"shape": (1000, 1000), "mpp": mpp, "slide_mpp": 0.25}
        area = rasterise(Polygon("", "Tumor", circle), **form).sum() * mpp**2
        assert area == pytest.approx(np.pi * (900 * 0.25) ** 2, rel=0.01)


@pytest.mark.parametrize("group", ["_2", "Exclusion", "None", "Ignore*"])
def test_holes_are_cut_after_every_lesion_is_filled(group):
    lesions = [box(0, 0, 20, 20), box(10, 10, 20, 20, "_1")]
    mask = rasterise(box(12, 12, 4, 4, group), *lesions)
    assert not mask[12:16, 12:16].any()
    assert mask.sum() == 400 + 400 - 100 - 16


def test_crooked_polygons_are_tolerated():
    outlines = (
        [(0, 0), (20, 20), (0, 20), (20, 0)],  # a bow
        *([(25, 0), (25, 30.0)], [(35.5, 5.5)] * 4, np.zeros((0, 2))),
    )
    polygons = [Polygon("", "_0", np.array(outline, float)) for outline in outlines]
    mask = rasterise(*polygons, box(-90, -90, 20, 20))
    assert abs(mask.sum() - 200) <= 20
    assert not mask[20:].any()
