"""um/px comes from the manifest, an OME-XML, a property or the tags; or not at all."""

import pytest
import tifffile
from slides.tiffs import MPP, picture, write_tiff

from wsi_jax.slides.slide import SlideError, open_slide

TILES = pytest.mark.parametrize("tile", [None, (64, 64)])  # tifffile's, OpenSlide's
OME = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">
<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{w}" SizeY="{h}"
 SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="{x}" PhysicalSizeY="{y}" {units}>
<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/>
</Pixels></Image></OME>"""


def write_ome(path, tile, h=80, w=90, x=0.25, y=0.25, unit="um", **options):
    units = f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"' if unit else ""
    description = OME.format(h=h, w=w, x=x, y=y, units=units).encode()
    options |= {"description": description, "metadata": None}
    tifffile.imwrite(path, picture(80, 90), tile=tile, **options)
    return path


def test_mpp_comes_from_manifest_then_property_then_tags(tmp_path):
    image = picture(80, 90)
    tiled = write_tiff(tmp_path / "tiled.tif", [image])
    strips = write_tiff(tmp_path / "strips.tif", [image], tile=None)
    inches = (25400 / MPP,) * 2
    inches = write_tiff(tmp_path / "inches.tif", [image], inches, 2, tile=None)
    for path, given, mpp, source in (
        (tiled, 0.5, 0.5, "manifest"),
        (tiled, None, MPP, "property"),
        (strips, None, MPP, "tiff"),
        (inches, None, MPP, "tiff"),
    ):
        slide = open_slide(path, given)
        assert (slide.mpp, slide.mpp_source) == (pytest.approx(mpp, rel=1e-6), source)


@TILES
@pytest.mark.parametrize(
    ("size", "unit"),
    [(0.25, ""), (0.25, "\u00b5m"), (0.25, "um"), (250, "nm"), (0.00025, "mm")],
)
def test_an_ome_tiff_states_its_mpp(tmp_path, size, unit, tile):
    slide = open_slide(write_ome(tmp_path / "a.tif", tile, x=size, y=size, unit=unit))
    assert (slide.mpp, slide.mpp_source) == (pytest.approx(0.25), "ome")
    assert slide.mpp_note == ""


@TILES
def test_an_ome_is_believed_before_the_resolution_with_a_note(tmp_path, tile):
    resolution = {"resolution": (20_000, 20_000), "resolutionunit": 3}
    slide = open_slide(write_ome(tmp_path / "a.ome.tif", tile, **resolution))
    assert slide.mpp == 0.25
    assert "mpp 0.25 is used, by its ome" in slide.mpp_note
    assert "says 0.5" in slide.mpp_note


@TILES
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "pixel"}, "no usable um/px"),
        ({"x": "small"}, "no usable um/px"),
        ({"x": "1<", "y": 1}, "no usable um/px"),
        ({"h": 40}, "no usable um/px"),  # another image of the file
        ({"x": 0.5}, "not square"),
        ({"x": 900, "y": 900}, "its ome says 900"),
    ],
)
def test_an_ome_of_no_use_is_refused(tmp_path, change, message, tile):
    with pytest.raises(SlideError, match=message):
        open_slide(write_ome(tmp_path / "a.ome.tif", tile, **change))


@TILES
def test_default_and_oblong_resolutions_are_no_mpp(tmp_path, tile):
    path, mend = tmp_path / "TCGA-X.a.b.tif", r"mpp column.*--config\.data"
    for resolution, unit, message in (
        *(((72, 72), 2, mend), ((300, 300), 2, mend)),
        *(((1, 1), 1, mend), ((1, 1), 3, mend)),
        ((40000, 20000), 3, r"not square, 0\.5 x 0\.25"),
    ):
        write_tiff(path, [picture(80, 90)], resolution, unit, tile=tile)
        with pytest.raises(SlideError, match=rf"TCGA-X\.a\.b: .*{message}"):
            open_slide(path)
        assert open_slide(path, 0.5).mpp == 0.5
    for mpp in (0.0, -1.0, 1000.0):
        with pytest.raises(SlideError, match=r"TCGA-X\.a\.b: .*mpp column"):
            open_slide(path, mpp)
