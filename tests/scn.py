"""A Leica SCN whose scan covers a part of OpenSlide's plane."""

import numpy as np
import tifffile

NM_PER_PX = 500


def _image(name, size, offset, ifds):
    dimensions = "".join(
        f'<dimension sizeX="{w}" sizeY="{h}" r="{r}" ifd="{ifd}"/>'
        for r, (ifd, w, h) in enumerate(ifds)
    )
    w, h = (n * NM_PER_PX for n in size)
    x, y = (n * NM_PER_PX for n in offset)
    return (
        f'<image name="{name}" uuid="u"><device model="Leica SCN400" version="1"/>'
        f'<pixels sizeX="{ifds[0][1]}" sizeY="{ifds[0][2]}">{dimensions}</pixels>'
        f'<view sizeX="{w}" sizeY="{h}" offsetX="{x}" offsetY="{y}" spacingZ="400"/>'
        "<scanSettings><objectiveSettings><objective>20</objective>"
        "</objectiveSettings><illuminationSettings><numericalAperture>0.4"
        "</numericalAperture><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings></image>"
    )


def write(path, pixels, plane_shape, bounds_yx):
    """Writes `pixels` at 0.5 um/px, at `bounds_yx` of a plane of (h, w) px."""
    (h, w), (plane_h, plane_w) = pixels.shape[:2], plane_shape
    plane = plane_w, plane_h
    collection = " ".join(
        f'size{axis}="{n * NM_PER_PX}"' for axis, n in zip("XY", plane, strict=True)
    )
    description = (
        '<?xml version="1.0"?><scn uuid="u" '
        'xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" uuid="u" {collection}>'
        + _image("macro", plane, (0, 0), [(0, 60, 48)])
        + _image("main", (w, h), bounds_yx[::-1], [(1, w, h)])
        + "</collection></scn>"
    )
    kwargs = {
        "tile": (256, 256),
        "compression": "jpeg",
        "photometric": "rgb",
        "metadata": None,
        "resolutionunit": "CENTIMETER",
    }
    macro = np.full((48, 60, 3), 220, np.uint8)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(macro, description=description, resolution=(400, 400), **kwargs)
        tiff.write(pixels, resolution=(20_000, 20_000), **kwargs)
