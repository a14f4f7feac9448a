"""From another tool's files to our manifest by one command."""

import sys

import pytest

from wsi_jax.data.cohort import read_manifest
from wsi_jax.run import import_manifest

DATASET = "case_id,slide_id,label\n" + "".join(
    f"patient_{i},slide_{i},{label}\n"
    for i, label in enumerate(("normal", "tumor") * 6)
)
SPLIT = ",train,val,test\n" + "".join(
    f"{i},slide_{i},slide_{i + 4},slide_{i + 8}\n" for i in range(4)
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "slides").mkdir()
    for i in range(12):
        (tmp_path / "slides" / f"slide_{i}.svs").write_text(str(i))
    (tmp_path / "dataset.csv").write_text(DATASET)
    (tmp_path / "splits_0.csv").write_text(SPLIT)
    return tmp_path


@pytest.fixture
def run(folder, monkeypatch):
    def command(text):
        words = f"import_cohort {text} --out {folder}/out/mine.csv"
        monkeypatch.setattr(sys, "argv", words.format(f=folder).split())
        import_manifest.main()
        return read_manifest(folder / "out" / "mine.csv")

    return command


CLAM = "--from clam --csv {f}/dataset.csv --slides {f}/slides"


def test_clams_files_become_a_manifest_and_back(run, folder, capsys):
    cohort = run(f"{CLAM} --splits {{f}}/splits_0.csv --clam {{f}}/clam")
    assert len(cohort.rows) == 12
    assert cohort.classes == ("normal", "tumor")
    assert cohort.rows[4].split == "val"
    assert cohort.rows[4].path == str(folder / "slides/slide_4.svs")
    printed = capsys.readouterr().out
    assert "12 slides, classes ('normal', 'tumor')" in printed
    assert printed.count(" 2 ") == 6  # slides of each split and class
    assert (folder / "clam" / "splits_0.csv").read_text() == SPLIT
    again = "--from clam --csv {f}/clam/dataset.csv --splits {f}/clam/splits_0_bool.csv"
    assert run(f"{again} --slides {{f}}/slides") == cohort
    run("--from manifest --csv {f}/out/mine.csv --clam {f}/more")
    assert (folder / "more" / "dataset.csv").read_text() == DATASET


def test_splits_left_open_are_printed_as_drawn(run, capsys):
    assert {row.split for row in run(CLAM).rows} == {""}
    assert "12 slides have no split: a run draws it" in capsys.readouterr().out


def test_a_leak_is_printed_and_the_exit_status_shows_it(run, folder, capsys):
    (folder / "dataset.csv").write_text(DATASET.replace("patient_8", "patient_0"))
    with pytest.raises(SystemExit) as caught:
        run(f"{CLAM} --splits {{f}}/splits_0.csv")
    assert caught.value.code == 1
    printed = capsys.readouterr().err
    assert "a run will refuse" in printed
    assert "patient 'patient_0' is in 'test' and 'train'" in printed
    assert len(read_manifest(folder / "out/mine.csv").rows) == 12  # to be mended


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--from clam --csv {f}/dataset.csv", "add --slides FOLDER"),
        ("--from clam --csv {f}/dataset.csv --slides {f}/none", "no such folder"),
        ("--from clam --csv {f}/gone.csv --slides {f}", "gone.csv: no such"),
        ("--from sasha --csv {f}/dataset.csv --slides {f}", "add --splits FILE"),
        ("--from trident --csv {f}/dataset.csv --slides {f}", "add --wsis FILE"),
        ("--from streaming_clam --csv {f}/dataset.csv --slides {f}", "takes 3 files"),
        (f"{CLAM} --classes normal cancer", "label 'tumor' of slide 'slide_1'"),
        (f"{CLAM} --label grade", "no column 'grade'"),
    ],
)
def test_what_is_wrong_is_one_line(run, folder, words, message):
    with pytest.raises(SystemExit) as caught:
        run(words)
    assert message in caught.value.code
    assert len(caught.value.code.splitlines()) == 1
    assert not (folder / "out").exists()
