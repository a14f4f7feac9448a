"""What becomes of a slide: its status, its reason and its line of slides.csv."""

import pathlib

import h5py
import numpy as np

from wsi_jax.data.cohort import Row
from wsi_jax.run.slide_record import precomputed_records, tiled_record
from wsi_jax.run.tiling import TiledSlide

COLUMNS = (
    "slide_id path label patient_id site mpp mpp_source height width background "
    "stain_red stain_green stain_blue tissue_mm2 tiles status reason"
)


def record(reason="", note=""):
    row = Row("a", "a.svs", "x", "p", "train")
    slide = TiledSlide(row, np.zeros((3, 2), np.int32), reason=reason, note=note)
    return tiled_record(slide, "encoded")


def test_a_line_of_slides_csv():
    columns = record().columns()
    assert list(columns) == COLUMNS.split()
    assert (columns["tiles"], columns["status"], columns["reason"]) == (
        3,
        "encoded",
        "",
    )
    assert record().message() == ""


def test_the_first_refusal_stays_and_a_note_stands_once():
    one = record(note="a: mpp")
    one.note("a: mpp")
    one.note("")
    one.refuse("")
    assert (one.status, one.reason) == ("encoded", "a: mpp")
    assert one.message() == "note: a: a: mpp"
    one.refuse("a: torn")
    one.refuse("a: torn again")
    assert (one.status, one.reason) == ("refused", "a: torn; a: mpp")
    assert one.message() == "refused: a: torn; a: mpp"


def test_a_slide_is_refused_where_its_tiles_or_its_children_are():
    for low, high in (("", "a: gone"), ("a: gone", ""), ("a: gone", "a: gone")):
        one = record(low, note="1 of 3")
        one.add_reasons_of(record(high, note="1 of 3"))
        assert (one.status, one.reason) == ("refused", "a: gone; 1 of 3")
        assert one.tiles == 3


def changed(f, name, at, value):
    values = f[name][()]
    values[at] = value
    del f[name]
    f[name] = values


def link(f):
    f.move("features", "x")
    f["features"] = h5py.SoftLink("x")


def longer(f):
    del f["features"]
    f["features"] = np.ones((5, 3))


def empty(f):
    for name in list(f):
        del f[name]
        f[name] = np.zeros((0, 2))


FAULTS = {
    "nan": ("1 of 5 tiles have features that are no finite", "features", np.nan),
    "inf": ("1 of 5 tiles have features that are no finite", "features", 1e30),
    "place": ("1 of 5 tiles have coords that are no pixel", "coords", np.nan),
    "empty": ("a bag without tiles", empty),
    "link": ("features is a link", link),
    "longer": ("features of 3 numbers, 2 elsewhere", longer),
    "gone": ("no such feature file", None),
}


def test_precomputed_features_that_cannot_be_learnt_from_are_refused(tmp_path):
    """Whatever is wrong with a file; and the others are used."""
    for name in ("good", "as good", *FAULTS):
        with h5py.File(tmp_path / f"{name}.h5", "w") as f:
            f["features"], f["coords"] = np.ones((5, 2)), np.zeros((5, 2))
            match FAULTS.get(name, ()):
                case (_, str() as dataset, value):
                    changed(f, dataset, (2, 1), value)
                case (_, None):
                    pathlib.Path(f.filename).unlink()
                case (_, fault):
                    fault(f)
    rows = [Row(name, "", "a", name, "") for name in ("good", "as good", *FAULTS)]
    good, _, *bad = precomputed_records(rows, tmp_path)
    columns = good.columns()
    assert (columns["status"], columns["tiles"]) == ("precomputed", 5)
    assert "mpp" not in columns
    for one in bad:
        assert one.status == "refused"
        assert one.reason.startswith(f"{one.slide_id}: ")
        assert FAULTS[one.slide_id][0] in one.reason
