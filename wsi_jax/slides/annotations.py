"""Outlines drawn by pathologists: ASAP XML, as CAMELYON has them, and their masks."""

import math
import os
from collections.abc import Collection, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import defusedxml.ElementTree
import numpy as np
from jaxtyping import Bool, Float

from wsi_jax.files import replacing

# Groups whose polygons are cut out: CAMELYON16's training and test names for "not
# tumour" (the challenge's own mask script gives them 0), and QuPath's.
HOLES = frozenset({"_2", "Exclusion", "None", "Ignore*"})
_AREAS = frozenset({"Polygon", "Spline", "Rectangle"})
_COLOURS = {True: "#64FE2E", False: "#F4FA58"}


class AnnotationError(ValueError):
    """An annotation file that cannot be used; the message names it and the place."""


class Polygon(NamedTuple):
    """One outline: (y, x) vertices in level-0 pixels, not closed.

    `group` says what it means: `_0`, `_1`, `Tumor` are lesions, those in `HOLES` are
    cut out of them.
    """

    name: str
    group: str
    vertices: Float[np.ndarray, "m 2"]


def write_asap(path: str | os.PathLike, polygons: Sequence[Polygon]) -> None:
    """Writes ASAP's XML, coordinates to the last bit; replaces `path` whole."""
    root = ElementTree.Element("ASAP_Annotations")
    annotations = ElementTree.SubElement(root, "Annotations")
    for polygon in polygons:
        annotation = ElementTree.SubElement(
            annotations,
            "Annotation",
            Name=polygon.name,
            Type="Polygon",
            PartOfGroup=polygon.group,
            Color=_COLOURS[polygon.group in HOLES],
        )
        coordinates = ElementTree.SubElement(annotation, "Coordinates")
        for order, (y, x) in enumerate(polygon.vertices.tolist()):
            ElementTree.SubElement(
                coordinates, "Coordinate", Order=str(order), X=repr(x), Y=repr(y)
            )
    groups = ElementTree.SubElement(root, "AnnotationGroups")
    # "None" is ASAP's word for no group.
    for name in dict.fromkeys(p.group for p in polygons if p.group != "None"):
        group = ElementTree.SubElement(
            groups,
            "Group",
            Name=name,
            PartOfGroup="None",
            Color=_COLOURS[name in HOLES],
        )
        ElementTree.SubElement(group, "Attributes")
    ElementTree.indent(root, "\t")
    with replacing(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, "utf-8", xml_declaration=True)


def read_asap(path: str | os.PathLike) -> list[Polygon]:
    """Reads the areas of an ASAP XML file; dots and rulers have none and are left out.

    Raises:
        AnnotationError: not XML, not ASAP's, or a coordinate that is no number.
    """
    try:
        root = defusedxml.ElementTree.parse(os.fspath(path)).getroot()
    except OSError as error:
        raise AnnotationError(
            f"{path} cannot be read ({error.strerror}); mend the manifest's "
            "annotation_path column"
        ) from error
    except (ElementTree.ParseError, defusedxml.DefusedXmlException) as error:
        raise AnnotationError(
            f"{path} is not a plain XML file ({error!r}); save it again from ASAP"
        ) from error
    if root.tag != "ASAP_Annotations":
        raise AnnotationError(
            f"{path} starts with <{root.tag}>, not <ASAP_Annotations>; export the "
            "annotations as ASAP XML"
        )
    polygons = []
    for index, annotation in enumerate(root.iter("Annotation")):
        try:
            if annotation.attrib["Type"] not in _AREAS:
                continue
            corners = sorted(
                (int(c.attrib["Order"]), float(c.attrib["Y"]), float(c.attrib["X"]))
                for c in annotation.iter("Coordinate")
            )
            vertices = np.array([yx for _, *yx in corners]).reshape(-1, 2)
            if not np.isfinite(vertices).all():
                raise ValueError("a coordinate is not finite")
            group = annotation.attrib["PartOfGroup"]
            polygons.append(Polygon(annotation.attrib["Name"], group, vertices))
        except (KeyError, ValueError) as error:
            raise AnnotationError(
                f"{path}: annotation {index}, {annotation.attrib}, is damaged "
                f"({error!r}); mend it in ASAP"
            ) from error
    return polygons


def rasterise(
    polygons: Sequence[Polygon],
    shape: tuple[int, int],
    mpp: float,
    slide_mpp: float,
    holes: Collection[str] = HOLES,
) -> Bool[np.ndarray, "h w"]:
    """Marks the pixels whose centre lies in a lesion and in no hole.

    Lesions are filled first, all of them, then holes are cut. A polygon that crosses
    itself is filled by the even-odd rule; fewer than three vertices have no area; what
    lies outside `shape` is cut off.

    Args:
        polygons: in level-0 pixels.
        shape: (h, w) of the mask.
        mpp: um/px of the mask.
        slide_mpp: um/px of level 0.
        holes: groups that are cut.
    """
    mask = np.zeros(shape, bool)
    for cut in (False, True):
        for polygon in polygons:
            if (polygon.group in holes) == cut:
                _fill(mask, polygon.vertices * (slide_mpp / mpp), not cut)
    return mask


def _fill(mask, vertices, value):
    """Sets the pixels of `mask` whose centre is inside `vertices` (even-odd rule).

    Each edge flips, in every row whose centre line it crosses, all pixels to the right
    of the crossing: work grows with the outline, not with outline times area.
    """
    if len(vertices) < 3:
        return
    start = vertices - 0.5  # pixel centres at whole numbers
    h, w = mask.shape
    top, left = (max(0, math.ceil(n)) for n in start.min(0))
    bottom, right = (
        min(limit, math.floor(n) + 1)
        for n, limit in zip(start.max(0), (h, w), strict=True)
    )
    if top >= bottom or left >= right:
        return
    stop = np.roll(start, -1, 0)
    low = np.where((start[:, 0] <= stop[:, 0])[:, None], start, stop)
    high = np.where((start[:, 0] <= stop[:, 0])[:, None], stop, start)
    # Rows low <= row < high: a vertex on a row's centre line counts once.
    first = np.clip(np.ceil(low[:, 0]), top, bottom).astype(int)
    last = np.clip(np.ceil(high[:, 0]), top, bottom).astype(int)
    count = last - first
    edge = np.repeat(np.arange(len(vertices)), count)
    row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    row = row + first[edge]
    slope = (high - low)[edge]
    x = low[edge, 1] + (row - low[edge, 0]) / slope[:, 0] * slope[:, 1]
    column = np.clip(np.ceil(x), left, right).astype(int)
    flips = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(flips, (row - top, column - left), 1)
    inside = np.cumsum(flips[:, :-1], 1) % 2 == 1
    mask[top:bottom, left:right][inside] = value
