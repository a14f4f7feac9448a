"""QuPath's outlines become the same polygons as ASAP's; a hole is not filled."""

import json
import tarfile

import numpy as np
import pytest

from wsi_jax.slides import annotations
from wsi_jax.slides.annotations import AnnotationError, Polygon, rasterise
from wsi_jax.slides.geojson import read_geojson
from wsi_jax.slides.masks import read_annotations


def ring(y, x, h, w):
    """A closed box, (x, y), clockwise on the screen."""
    return [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]


def feature(kind, coordinates, properties=None):
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


@pytest.fixture
def write(tmp_path):
    def to(tree, name="a.geojson"):
        text = tree if isinstance(tree, str) else json.dumps(tree)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return to


def filled(polygons, shape=(40, 40)):
    return rasterise(polygons, shape, 1.0, 1.0)


QUPATH = collection(
    feature(
        "Polygon",
        [ring(3, 5, 10, 20)],
        {
            "objectType": "annotation",
            "name": "first",
            "classification": {"name": "Tumor", "color": [200, 0, 0]},
        },
    ),
    feature("Polygon", [ring(20, 1, 4, 4)], {"classification": "Stroma"}),
    feature("Polygon", [ring(30, 1, 4, 4)]),
    feature("Point", [1, 2], {"objectType": "annotation"}),
    feature("LineString", [[1, 2], [30, 4]]),
    {"type": "Feature", "geometry": None, "properties": {}},
)


def test_names_classes_and_places(write):
    first, second, third = read_geojson(write(QUPATH))
    assert first[:2] == ("first", "Tumor")
    assert second[:2] == ("", "Stroma")
    assert third[:2] == ("", "")
    corners = [(3, 5), (3, 25), (13, 25), (13, 5)]
    np.testing.assert_array_equal(first.vertices, corners)
    expected = np.zeros((40, 40), bool)
    expected[3:13, 5:25] = expected[20:24, 1:5] = expected[30:34, 1:5] = True
    np.testing.assert_array_equal(filled([first, second, third]), expected)


@pytest.mark.parametrize(
    "tree",
    [
        feature("Polygon", [ring(3, 5, 10, 20)]),
        [feature("Polygon", [ring(3, 5, 10, 20)])],
        feature("Polygon", [ring(3, 5, 10, 20)])["geometry"],
        feature("MultiPolygon", [[ring(3, 5, 10, 12)], [ring(3, 17, 10, 8)]]),
        feature("MultiPolygon", [[ring(3, 5, 10, 20)], [[[1, 1], [9, 9], [1, 1]]], []]),
        feature("Polygon", [ring(3, 5, 10, 20)[:-1]]),
        feature("Polygon", [[[*xy, 7.5] for xy in ring(3, 5, 10, 20)]]),
        feature("Polygon", [ring(3, 5, 10, 20)[::-1]]),
    ],
    ids=["feature", "list", "bare", "multi", "line", "open", "height", "turned"],
)
def test_every_form_of_one_region(write, tree):
    """A line is nothing; a crooked ring is filled."""
    mask = filled(read_geojson(write(tree)))
    assert mask[3:13, 5:25].all()
    assert mask.sum() == 200
    bow = [[0, 0], [20, 20], [20, 0], [0, 20], [0, 0]]
    crooked = filled(read_geojson(write(feature("Polygon", [bow]))))
    assert abs(crooked.sum() - 200) <= 20


@pytest.mark.parametrize("turn", [1, -1])
def test_a_hole_is_not_filled_and_an_island_in_it_is(write, turn):
    """Two polygons: a box with two holes, and an island inside one of them."""
    outer, hole, other = ring(0, 0, 30, 30), ring(5, 5, 12, 12), ring(20, 20, 5, 5)
    rings = [outer, hole[::turn], other]
    tree = feature("MultiPolygon", [rings, [ring(8, 8, 4, 4)]])
    polygons = read_geojson(write(tree))
    expected = np.zeros((40, 40), bool)
    expected[:30, :30] = True
    expected[5:17, 5:17] = expected[20:25, 20:25] = False
    expected[8:12, 8:12] = True
    np.testing.assert_array_equal(filled(polygons), expected)
    # The outline's signed area is that of what is filled, too.
    y, x = polygons[0].vertices.T
    area = np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2
    assert abs(area) == 900 - 144 - 25


def test_tiles_and_cells_are_no_annotations(write):
    tile = feature("Polygon", [ring(0, 0, 9, 9)], {"objectType": "tile"})
    lesion = feature("Polygon", [ring(3, 5, 10, 20)], {"objectType": "annotation"})
    assert filled(read_geojson(write([tile, lesion]))).sum() == 200
    with pytest.raises(AnnotationError, match=r"no annotation, only tile objects"):
        read_geojson(write([tile]))
    assert read_annotations(write(collection())) == []  # no region is a file too


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "FeatureCollection"',
        '{"features": []}',
        '{"type": "Topology"}',
        '{"type": "Feature", "geometry": 7}',
        '{"type": "Polygon", "coordinates": 7}',
        '{"type": "Polygon", "coordinates": [[[1, 2], [3], [4, 5]]]}',
        '{"type": "Polygon", "coordinates": [[[1, 2], [3, NaN], [4, 5]]]}',
        '{"type": "Polygon", "coordinates": [[[1, 2], [3, "x"], [4, 5]]]}',
        '{"type": "Polygon", "coordinates": [[[1, 2], [3, %s], [4, 5]]]}' % ("9" * 400),
        '{"type": "Polygon", "coordinates": [[[1, 2], [3, 1e300], [4, 5]]]}',
        json.dumps(feature("Polygon", [ring(0, 0, 1, 1)], [1])),
        json.dumps(feature("Polygon", [ring(0, 0, 1, 1)], "name")),
        json.dumps(feature("Polygon", [ring(0, 0, 1, 1)], {"objectType": [1]})),
        '{"type": "Polygon", "coordinates": [[[1, %s]]]}' % ("9" * 5000),
        "[" * 100_000,
        '{"type": "GeometryCollection", "geometries": [' * 900 + "1" + "]}" * 900,
    ],
)
def test_a_bad_file_is_named(write, text):
    with pytest.raises(AnnotationError, match=r"a\.geojson.*QuPath"):
        read_geojson(write(text))


def test_the_content_says_which_format_it_is(write, tmp_path):
    """Whatever the file is called."""
    polygon = Polygon("a", "_0", np.array([(3, 5), (3, 25), (13, 25), (13, 5.0)]))
    annotations.write_asap(tmp_path / "a.json", [polygon])
    assert filled(read_annotations(tmp_path / "a.json")).sum() == 200
    assert len(read_annotations(write("\ufeff \n" + json.dumps(QUPATH), "a.xml"))) == 3
    write("x,y\n1,2\n", "a.txt")
    write("", "empty")
    for name, message in (
        ("a.txt", r"a\.txt is neither ASAP XML nor"),
        ("empty", "empty is neither"),
        ("gone.xml", r"gone\.xml cannot .*annotation_path"),
    ):
        with pytest.raises(AnnotationError, match=message):
            read_annotations(tmp_path / name)


def test_areas_of_real_lesions(shared, write):
    """As GeoJSON and in the table of areas: the same."""
    folder = shared / "data/camelyon16"
    table = (folder / "lesion_polygons_summary.csv").read_text().splitlines()
    header = table[0].split(",")
    area = header.index("area_px0")
    wanted = [line.split(",") for line in table if line.startswith("tumor_001,train")]
    with tarfile.open(folder / "ncrf_tumor_polygons.tar.xz") as archive:
        drawn = json.load(archive.extractfile("jsons/train/Tumor_001.json"))
    lesions = drawn["positive"]
    tree = collection(
        *(
            feature("Polygon", [one["vertices"]], {"classification": one["name"]})
            for one in lesions
        )
    )
    polygons = read_geojson(write(tree))
    for one, line in zip(polygons, wanted, strict=True):
        assert one.group == line[header.index("name")]
        y, x = (one.vertices - one.vertices[0]).T
        shoelace = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
        assert shoelace == pytest.approx(float(line[area]), rel=1e-6)
        low, high = one.vertices.min(0), one.vertices.max(0)
        moved = one._replace(vertices=one.vertices - low)
        shape = tuple(np.ceil((high - low) / 8).astype(int).tolist())
        pixels = rasterise([moved], shape, 8.0, 1.0).sum()
        assert pixels * 64 == pytest.approx(float(line[area]), rel=0.005)
