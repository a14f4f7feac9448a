"""Each slide once, wherever it lies, and a warning of all that was left out."""

import os
import struct

import pytest
from absl import logging

from wsi_jax.data.cohort import CohortError
from wsi_jax.data.slide_folder import find_slides
from wsi_jax.slides.dicom import series_uid


@pytest.fixture
def make(tmp_path):
    def file(name, data=b""):
        path = tmp_path / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return file


@pytest.fixture
def warned(monkeypatch):
    texts = []
    monkeypatch.setattr(logging, "warning", lambda text, *a: texts.append(text % a))
    return texts


def find(tmp_path, wanted=None):
    folder = tmp_path / "slides"
    slides = find_slides(folder, wanted)
    return {name: os.path.relpath(path, folder) for name, path in slides.items()}


def test_linked_folders_and_files_are_followed_and_each_file_counts_once(
    make, tmp_path, warned
):
    make("a.svs")
    make("deep/b.svs")
    elsewhere = tmp_path / "elsewhere" / "more"
    elsewhere.mkdir(parents=True)
    (elsewhere / "c.svs").touch()
    (elsewhere / "d.svs").touch()
    slides = tmp_path / "slides"
    (slides / "link").symlink_to(elsewhere.parent)
    (slides / "deep" / "up").symlink_to(slides)  # a cycle
    (slides / "e.svs").symlink_to(elsewhere / "d.svs")
    (slides / "f.svs").symlink_to("a.svs")
    (slides / "g.svs").symlink_to("gone.svs")
    os.mkfifo(slides / "h.svs")
    assert find(tmp_path) == {
        "a": "a.svs",
        "b": "deep/b.svs",
        "c": "link/more/c.svs",
        "e": "e.svs",
    }
    assert sorted(text.partition(": ")[2] for text in warned) == [
        "1 left out, folders that a link shows again: deep/up",
        "2 left out, links to nowhere and what is no regular file: h.svs, g.svs",
        "2 left out, other names of the same file: f.svs, link/more/d.svs",
    ]


def test_wanted_slides_may_share_a_file_but_not_a_name(make, tmp_path, warned):
    """A warning says why one of them is not there."""
    make("a.svs")
    make("c.vsi")
    make("d.vsi")
    slides = tmp_path / "slides"
    (slides / "b.svs").symlink_to("a.svs")
    (slides / "deep").mkdir()
    (slides / "deep" / "a.svs").symlink_to("../a.svs")
    assert find(tmp_path, ["a", "b", "c"]) == {"a": "a.svs", "b": "b.svs"}
    assert any(text.endswith("cannot be read: c.vsi") for text in warned)
    make("deep/a.tif")
    with pytest.raises(CohortError, match=r"slide 'a' is any of .*keep one of them"):
        find_slides(slides)


def test_parts_of_slides_and_what_is_hidden_or_cannot_be_read_are_left_out(
    make, tmp_path, warned
):
    for name in (
        *("a.mrxs", "A/slidedat.ini", "A/thumb.png", "plain/s.svs", "plain.mrxs"),
        *("b.vsi", "_b_/stack1/frame.png", "c.jp2", "d.txt", "x/e.ndpi"),
        *("._a.svs", ".git/f.svs", "g:h.svs", "m-40x.jpg", "other.jpg"),
    ):
        make(name)
    make("m.vms", b"[Virtual Microscope Specimen]\r\nImageFile=m-40x.jpg\r\n")
    assert sorted(find(tmp_path)) == ["a", "e", "m", "other", "plain", "s"]
    assert sorted(text.partition(": ")[2] for text in warned) == [
        "1 left out, hidden files: ._a.svs",
        "1 left out, hidden folders: .git",
        "1 left out, images that belong to a slide: m-40x.jpg",
        "1 left out, the name is no slide_id: no : may be in it: g:h.svs",
        "2 left out, folders that belong to a slide: A, _b_",
        "2 left out, of a kind that cannot be read: b.vsi, c.jp2",
    ]


def element(tag, kind, value, explicit=True):
    """One DICOM element; `kind` is its value representation."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    value += b"\0" * (len(value) % 2)
    if not explicit:
        return head + struct.pack("<I", len(value)) + value
    if kind == b"SQ":
        return head + kind + b"\0\0" + struct.pack("<I", len(value)) + value
    return head + kind + struct.pack("<H", len(value)) + value


def dicom(series, explicit=True, padding=0):
    """The head of a DICOM file, other series named in sequences before its own."""
    syntax = b"1.2.840.10008.1.2.1" if explicit else b"1.2.840.10008.1.2"
    nested = element(0x0020000E, b"UI", b"9.9", explicit)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(nested)) + nested
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    open_item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + nested
    open_item += struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    undefined = struct.pack("<HH", 0x0008, 0x1115) + b"SQ\0\0" * explicit
    undefined += struct.pack("<I", 0xFFFFFFFF) + item + open_item + end
    return b"".join((
        bytes(128), b"DICM",
        element(0x00020010, b"UI", syntax),
        element(0x00080060, b"CS", b"SM", explicit),
        element(0x00081110, b"SQ", item, explicit),
        undefined,
        element(0x0020000E, b"UI", series, explicit),
        bytes(padding),
    ))  # fmt: skip


def test_of_a_dicom_series_the_largest_file_stands_for_all(make, tmp_path, warned):
    make("s/level_2.dcm", dicom(b"1.2.3", padding=10))
    make("s/level_0.dcm", dicom(b"1.2.3", padding=300))
    make("s/label.DCM", dicom(b"1.2.3"))
    make("s/other.dcm", dicom(b"1.2.31"))
    make("t/copy.dcm", dicom(b"1.2.3"))  # readers look in one folder only
    make("t/junk.dcm", b"no DICOM")
    assert sorted(find(tmp_path)) == ["copy", "junk", "level_0", "other"]
    (text,) = warned
    assert text.endswith(
        "2 left out, other files of a DICOM series: s/label.DCM, s/level_2.dcm"
    )
    assert sorted(find(tmp_path, ["level_2", "level_0"])) == ["level_0", "level_2"]


def test_a_series_is_read_past_sequences_and_of_damaged_heads_is_none(make, tmp_path):
    for explicit in (True, False):
        assert series_uid(make("a.dcm", dicom(b"1.2.3", explicit))) == "1.2.3"
    whole = dicom(b"1.2.3")
    for size in range(0, len(whole) - 6, 7):
        assert series_uid(make("a.dcm", whole[:size])) == ""
    deep = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) * 30_000
    head = whole[:132] + struct.pack("<HH2s2xI", 8, 0x1115, b"SQ", 0xFFFFFFFF)
    assert series_uid(make("a.dcm", head + deep)) == ""
    assert series_uid(tmp_path / "gone.dcm") == ""


def test_a_real_file_has_the_series_that_openslide_reads(shared):
    openslide = pytest.importorskip("openslide")
    path = shared / "data/slides/multi_frame_jpeg_camelyon_challenge_image.dcm"
    with openslide.OpenSlide(path) as slide:
        uid = slide.properties["dicom.SeriesInstanceUID"]
    assert series_uid(path) == uid
