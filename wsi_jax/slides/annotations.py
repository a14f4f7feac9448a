"""Outlines drawn by pathologists: reads and writes ASAP XML, and fills masks."""

import math
import os
import stat
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

# A million vertices and more; their numbers take ten times as much memory.
MAX_BYTES = 64 * 2**20
MAX_COORDINATE_PX = 1e9
# Crossings of outlines with rows of a mask: some ten seconds of work, and twenty
# thousand times from top to bottom of one.
MAX_CROSSINGS = 10**8
_CHUNK = 1 << 18


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


def read_start(path: str | os.PathLike, size: int) -> bytes:
    """The first `size` bytes of a file; AnnotationError if it has none to read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait
            raise AnnotationError(f"{path} is not a regular file; give one")
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        raise AnnotationError(
            f"{path} cannot be read ({error.strerror}); mend the CSV's "
            "annotation_path or mask_path column"
        ) from error


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of an annotation file; AnnotationError beyond `MAX_BYTES`."""
    content = read_start(path, MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise AnnotationError(
            f"{path} has more than {MAX_BYTES >> 20} MiB; export the annotations "
            "alone, without detections, or with simpler outlines"
        )
    return content


def check_vertices(vertices: Float[np.ndarray, "m 2"]) -> None:
    """Raises ValueError for coordinates that are not finite or on no slide."""
    if not (np.abs(vertices) <= MAX_COORDINATE_PX).all():  # NaN is not either
        raise ValueError("a coordinate is not finite or beyond any slide")


def read_asap(path: str | os.PathLike) -> list[Polygon]:
    """Reads the areas of an ASAP XML file; dots and rulers have none and are left out.

    AnnotationError: not XML, not ASAP's, larger than `MAX_BYTES`, or a coordinate
    that is no number.
    """
    content = read_bytes(path)
    try:
        root = defusedxml.ElementTree.fromstring(content)
    except Exception as error:  # of its encoding too, which may be any Python has
        raise AnnotationError(
            f"{path} is not a plain XML file ({shorten(error)}); save it again from "
            "ASAP"
        ) from error
    if root.tag != "ASAP_Annotations":
        raise AnnotationError(
            f"{path} starts with <{root.tag[:80]}>, not <ASAP_Annotations>; export the "
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
            check_vertices(vertices)
            group = annotation.attrib["PartOfGroup"]
            polygons.append(Polygon(annotation.attrib["Name"], group, vertices))
        except (KeyError, ValueError) as error:
            raise AnnotationError(
                f"{path}: annotation {index}, {str(annotation.attrib)[:80]}, is "
                f"damaged ({shorten(error)}); mend it in ASAP"
            ) from error
    return polygons


def shorten(error: Exception) -> str:
    """An error in at most 200 characters: it may quote the file."""
    return f"{type(error).__name__}: {error}"[:200]


def rasterise(
    polygons: Sequence[Polygon],
    shape: tuple[int, int],
    mpp: float,
    slide_mpp: float,
    holes: Collection[str] = HOLES,
) -> Bool[np.ndarray, "h w"]:
    """Marks the pixels whose centre lies in a lesion and in no hole.

    Lesions are filled first, all of them, then holes, the groups `holes`, are cut. A
    polygon that crosses itself is filled by the even-odd rule; fewer than three
    vertices have no area; what lies outside `shape` is cut off. Memory is bounded,
    whatever the outlines.

    Args:
        polygons: outlines in level-0 pixels, of `slide_mpp`.
        shape: (h, w) of the mask, of `mpp`.

    AnnotationError: outlines that cross rows of the mask more than `MAX_CROSSINGS`
    times.
    """
    mask, crossings = np.zeros(shape, bool), 0
    for cut in (False, True):
        for polygon in polygons:
            if (polygon.group in holes) == cut:
                # Pixel centres at whole numbers.
                vertices = polygon.vertices * (slide_mpp / mpp) - 0.5
                rows = np.clip(np.ceil(vertices[:, 0]), 0, shape[0])
                crossings += int(np.abs(rows - np.roll(rows, 1)).sum())
                if crossings > MAX_CROSSINGS:
                    raise AnnotationError(
                        f"outlines cross rows of the mask more than {MAX_CROSSINGS:g} "
                        f"times; simplify that of {len(vertices)} vertices"
                    )
                _fill(mask, vertices, not cut)
    return mask


def _fill(mask, start, value):
    """Sets the pixels of `mask` whose centre is inside an outline (even-odd rule).

    Each edge flips, in every row whose centre line it crosses, all pixels to the right
    of the crossing: work grows with the outline, not with outline times area. As many
    rows are filled at a time as have at most `_CHUNK` crossings and pixels.
    """
    if len(start) < 3:
        return
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
    step = max(1, _CHUNK // max(len(start), right - left))
    for first in range(top, bottom, step):
        last = min(first + step, bottom)
        inside = _inside(low, high, (first, last), (left, right))
        mask[first:last, left:right][inside] = value


def _inside(low, high, rows, columns) -> Bool[np.ndarray, "h w"]:
    """The pixels that lie inside the edges from `low` to `high`, in some rows."""
    (top, bottom), (left, right) = rows, columns
    # Rows low <= row < high: a vertex on a row's centre line counts once.
    first = np.clip(np.ceil(low[:, 0]), top, bottom).astype(int)
    last = np.clip(np.ceil(high[:, 0]), top, bottom).astype(int)
    count = last - first
    edge = np.repeat(np.arange(len(low)), count)
    row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    row = row + first[edge]
    slope = (high - low)[edge]
    x = low[edge, 1] + (row - low[edge, 0]) / slope[:, 0] * slope[:, 1]
    column = np.clip(np.ceil(x), left, right).astype(int)
    flips = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(flips, (row - top, column - left), 1)
    return np.cumsum(flips[:, :-1], 1) % 2 == 1
