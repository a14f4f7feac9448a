"""Reads outlines drawn in QuPath: GeoJSON with classification names."""

import json
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from wsi_jax.slides.annotations import (
    AnnotationError,
    Polygon,
    check_vertices,
    read_bytes,
    shorten,
)

_COLLECTIONS = {"FeatureCollection": "features", "GeometryCollection": "geometries"}


def read_geojson(
    path: str | os.PathLike, bounds_yx: tuple[int, int] = (0, 0)
) -> list[Polygon]:
    """Reads the areas of QuPath's annotations; points and lines are left out.

    A Feature, a FeatureCollection, a list of Features or a bare geometry, in level-0
    pixels counted from `bounds_yx`, the corner of the scanned area, as QuPath does.
    `group` is the classification's name, "" where there is none. Objects of other types
    than annotation (tiles, detections, cells) are left out.

    A polygon with holes is one outline: from the outer ring to each hole and back along
    the same line. The even-odd rule fills just what lies between, so that one polygon's
    hole does not cut another polygon's island, and crooked rings need no mending: what
    a ring covers twice is outside.

    AnnotationError: not GeoJSON, larger than `MAX_BYTES`, a coordinate that is no
    number, or no annotation among objects of other types.
    """
    content = read_bytes(path)
    try:
        objects = list(_objects(json.loads(content.decode("utf-8-sig")), {}))
    except Exception as error:  # anything may stand where something else should
        raise AnnotationError(
            f"{path} is not GeoJSON ({shorten(error)}); export it from QuPath as "
            "GeoJSON again"
        ) from error
    polygons = []
    for index, (rings, properties) in enumerate(objects):
        if _kind(properties) == "annotation":
            try:
                vertices = _outline(rings) + bounds_yx
            except (ValueError, TypeError, ArithmeticError) as error:
                raise AnnotationError(
                    f"{path}: polygon {index}, {_name(properties)!r}, is damaged "
                    f"({shorten(error)}); mend it in QuPath"
                ) from error
            polygons.append(Polygon(_name(properties), _group(properties), vertices))
    if objects and not polygons:
        kinds = sorted({_kind(properties) for _, properties in objects})
        raise AnnotationError(
            f"{path} has no annotation, only {', '.join(kinds)[:80]} objects; export "
            "the annotations from QuPath"
        )
    return polygons


def _objects(tree: Any, properties: dict) -> Iterator[tuple[list, dict]]:
    """(rings, properties) of every polygon in a tree."""
    if isinstance(tree, list):
        for one in tree:
            yield from _objects(one, properties)
        return
    kind = tree["type"]
    if kind == "Feature":
        if tree["geometry"] is not None:
            properties = tree.get("properties") or {}
            if not isinstance(properties, dict):
                raise TypeError(f"properties {str(properties)[:80]} without names")
            yield from _objects(tree["geometry"], properties)
    elif kind in _COLLECTIONS:
        yield from _objects(tree[_COLLECTIONS[kind]], properties)
    elif kind == "Polygon":
        yield tree["coordinates"], properties
    elif kind == "MultiPolygon":
        for rings in tree["coordinates"]:
            yield rings, properties
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise ValueError(f"an object of type {kind!r}")


def _kind(properties):
    # QuPath before 0.4 wrote object_type; neither means an annotation.
    kind = properties.get("objectType") or properties.get("object_type")
    return str(kind or "annotation")


def _group(properties):
    group = properties.get("classification") or ""
    return str(group["name"] if isinstance(group, dict) and "name" in group else group)


def _name(properties):
    return str(properties.get("name") or "")[:80]


def _outline(rings) -> Float[np.ndarray, "m 2"]:
    """All rings of a polygon as one closed outline, (y, x)."""
    parts = [_ring(ring) for ring in rings]
    parts = [part for part in parts if len(part) > 2]
    if not parts:
        return np.zeros((0, 2))
    outer, *holes = parts
    start = outer[:1]
    # Outer rings turn one way and holes the other, so that signed areas add up too.
    walk = [_oriented(outer, 1), *(_oriented(hole, -1) for hole in holes)]
    if not holes:
        return walk[0]
    closed = [np.concatenate([part, part[:1]]) for part in walk]
    back = [part for hole in closed[1:] for part in (hole, start)]
    return np.concatenate([closed[0], *back])[:-1]


def _ring(points) -> Float[np.ndarray, "m 2"]:
    """Vertices without the last where it repeats the first; a height is left out."""
    ring = np.array([(y, x) for x, y, *_ in points], np.float64).reshape(-1, 2)
    check_vertices(ring)
    closed = len(ring) > 1 and (ring[0] == ring[-1]).all()
    return ring[:-1] if closed else ring


def _oriented(ring, sign):
    """The ring from its first vertex on, turning so that its area has this sign."""
    y, x = (ring - ring[0]).T
    area = float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
    if math.copysign(1, area) == sign:
        return ring
    return np.concatenate([ring[:1], ring[:0:-1]])
