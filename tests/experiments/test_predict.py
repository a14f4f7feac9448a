"""The command that predicts slides: whose mpp counts, what it takes, what it keeps."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
import tifffile
from PIL import Image
from run_files import by_slide, read_json, table, write_table

from wsi_jax import cli
from wsi_jax.run.predict.predict_slides import open_run, prediction_key
from wsi_jax.run.predict.predictor import Predictor
from wsi_jax.run.predict.slide_predictor import row_of_path
from wsi_jax.slides.slide import open_slide


@pytest.fixture(scope="module")
def pixels(manifest):
    """Of a practice slide."""
    with open_slide(manifest.parent / table(manifest)[0]["path"]) as slide:
        return slide.overview(1.0).repeat(2, 0).repeat(2, 1)


@pytest.fixture
def write(pixels, tmp_path):
    """write(name, mpp=None) -> path of a slide whose file has this mpp, or none."""

    def tiff(name, mpp=None, pixels=pixels):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        kwargs = {"resolution": (1e4 / mpp,) * 2, "resolutionunit": 3} if mpp else {}
        tifffile.imwrite(path, pixels, tile=(64, 64), metadata=None, **kwargs)
        return path

    return tiff


@pytest.fixture
def command(finished, tmp_path):
    """command(*words) predicts slides; the lines of predictions.csv, by slide_id."""
    out = tmp_path / "out"

    def predict(*words, run=finished):
        argv = ["predict", "--run", str(run), "--out", str(out), *map(str, words)]
        cli.app(argv, standalone_mode=False)
        return predict.lines()

    predict.out, predict.lines = out, lambda: by_slide(out / "predictions.csv")
    return predict


def test_all_devices_predict_as_the_first_does(command, finished, write):
    path = write("slide.tif", 0.5)
    (line,) = command("--devices", "all", path).values()
    p = open_run(finished).predict(path).probabilities
    for name, value in p.items():
        np.testing.assert_allclose(float(line[f"p_{name}"]), value, atol=1e-5)


def test_files_folders_and_csvs_each_at_their_own_mpp(command, write, tmp_path, capsys):
    """The flag is for slides that have none; a CSV that contradicts a file is noted."""
    own, _ = write("own.tif", 0.5), write("below/silent.tif")
    write("named.tif")
    write("wrong.tif", 0.5)
    listed = {"slide_id": "listed", "path": "named.tif", "mpp": 0.5}
    wrong = {"slide_id": "", "path": "wrong.tif", "mpp": 0.25}
    lines = command(
        *("--mpp", 0.25, own, tmp_path / "below"),
        write_table(tmp_path / "more.csv", [listed, wrong]),
    )
    mpps = {name: float(line["mpp"]) for name, line in lines.items()}
    assert mpps == {"own": 0.5, "silent": 0.25, "listed": 0.5, "wrong": 0.25}
    tiles = {name: int(line["tiles"]) for name, line in lines.items()}
    assert tiles["own"] == tiles["listed"] > tiles["silent"] == tiles["wrong"] > 0
    note = "mpp 0.25 is used, by its manifest; the file's property says 0.5"
    assert {n: line["reason"] for n, line in lines.items() if line["reason"]} == {
        "wrong": note
    }
    printed = capsys.readouterr()
    assert f"note: wrong: {note}" in printed.err
    own = lines["own"]
    p = float(own[f"p_{own['prediction']}"])
    assert f"own: {own['prediction']} ({p:.3f})\n" in printed.out
    assert {path.stem for path in command.out.glob("*.png")} == set(lines)


def test_where_all_slides_are_refused_the_command_fails(command, write, capsys):
    """And says why by its own flags."""
    silent = write("a.tif")
    with pytest.raises(SystemExit) as stop:
        command(silent, "gone.tif")
    assert stop.value.code == 1
    lines = command.lines()
    assert [line["prediction"] for line in lines.values()] == ["", ""]
    assert "with --mpp" in lines["a"]["reason"]
    printed = capsys.readouterr()
    assert lines["a"]["reason"] in printed.err
    assert "--config" not in printed.err
    assert "0 of 2 slides have a prediction" in printed.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mpp", "nan"), "--mpp nan: um/px, from 0.05 to 50"),
        (("--mpp", "-0.5"), "--mpp -0.5: um/px, from 0.05 to 50"),
        (("--max-unreadable", "nan"), "--max-unreadable nan: a share, 0 to 1"),
        (("--max-unreadable", "-1"), "--max-unreadable -1: a share, 0 to 1"),
        (("empty",), "CohortError: empty: no slide anywhere below it"),
        (("gone.csv",), "CohortError: gone.csv: no such manifest; mend the path"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    command, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        command(*words, "a.tif")
    assert stop.value.code == message


@pytest.fixture
def predicted(monkeypatch):
    """Names of the slides predicted since it was emptied, lists of those at once."""
    groups, predict = [], Predictor._predict

    def watched(self, rows, *args):
        groups.append([row.slide_id for row in rows])
        return predict(self, rows, *args)

    monkeypatch.setattr(Predictor, "_predict", watched)
    return groups


def test_methods_that_do_not_zoom_predict_slide_by_slide(command, write, predicted):
    lines = command("--together", 2, write("a.tif", 0.5), write("b.tif", 0.5))
    assert predicted == [["a"], ["b"]]
    assert not list(command.out.glob("*_zooms.csv"))
    assert all(int(line["tiles"]) > 0 for line in lines.values())


def edited(run, folder, edit):
    """A copy of a run whose card is changed by `edit(card)`."""
    shutil.copytree(run, folder)
    card = read_json(folder / "model.json")
    edit(card)
    (folder / "model.json").write_text(json.dumps(card))
    return folder


def test_a_prediction_is_kept_while_nothing_it_depends_on_changes(
    command, write, predicted, pixels, tmp_path
):
    path = write("a.tif", 0.5)
    first = command(path)
    assert predicted == [["a"]]
    assert command(path) == first
    assert predicted == [["a"]]
    # Another slide under the same name, of the same size and time: it is refused.
    before = path.stat()
    write("a.tif", 0.5, np.full_like(pixels, 255))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(SystemExit):
        command(path)
    assert "no tissue" in command.lines()["a"]["reason"]
    assert not (command.out / "a.png").exists()


def test_keys_of_predictions(finished, write, pixels, tmp_path):
    predictor = open_run(finished, False)
    mask, path = tmp_path / "mask.png", write("a.tif")
    Image.fromarray(np.ones((9, 9), np.uint8)).save(mask)
    row = row_of_path(path, 0.5)
    key = lambda row=row, share=0.1: prediction_key(predictor, row, share)
    masked = dataclasses.replace(row, mask_path=str(mask))
    keys = [key(), key(row_of_path(path, 0.25)), key(share=0.2), key(masked)]
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(mask)
    keys.append(key(masked))
    keys.append(key(dataclasses.replace(row, slide_id="b")))
    write("a.tif", pixels=pixels[::-1])
    keys.append(key())
    predictor = open_run(finished, False, refuse_unfamiliar_stains=True)
    keys.append(key())
    strict = edited(finished, tmp_path / "run", lambda card: card.update(threshold=0.9))
    predictor = open_run(strict, False)
    keys.append(key())
    predictor.params = jax.tree.map(lambda a: a + 1, predictor.params)
    del predictor.digest
    keys.append(key())
    assert len(set(keys)) == len(keys)
    moved = shutil.copy(path, tmp_path / "moved.tif")
    assert key(dataclasses.replace(row, path=str(moved))) == key()
    assert key(row_of_path("gone.tif")) == ""


def test_a_run_on_masks_takes_them_from_a_csv(command, write, finished, tmp_path):
    def ask_for_masks(card):
        card["tiling"]["tissue"]["source"]["name"] = "MASK"

    run = edited(finished, tmp_path / "masked", ask_for_masks)
    half = np.zeros((10, 10), np.uint8)
    half[:5] = 1
    Image.fromarray(half).save(tmp_path / "half.png")
    Image.fromarray(half | 1).save(tmp_path / "whole.png")
    write("a.tif", 0.5)
    lines = [
        {"slide_id": name, "path": "a.tif", "mask_path": f"{name}.png"}
        for name in ("half", "whole")
    ]
    nothing = {"slide_id": "none", "path": "a.tif", "mask_path": ""}
    results = command(write_table(tmp_path / "all.csv", [*lines, nothing]), run=run)
    tiles = {name: int(line["tiles"]) for name, line in results.items()}
    assert tiles["half"] == tiles["whole"] / 2 > 0
    assert "none: no mask; give one in the CSV's mask_path" in results["none"]["reason"]


def test_a_slide_too_damaged_names_the_flag_that_takes_it(command, tmp_path, pixels):
    path = tmp_path / "a.tif"
    kwargs = {"tile": (64, 64), "compression": "zlib", "resolutionunit": 3}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, resolution=(20_000, 20_000), **kwargs)
        small = pixels[::8, ::8]  # where tissue is looked for
        tiff.write(small, resolution=(2_500, 2_500), subfiletype=1, **kwargs)
    with tifffile.TiffFile(path) as tiff:
        offsets = tiff.pages[0].dataoffsets
    with open(path, "r+b") as file:
        for at in offsets[len(offsets) // 2 :]:
            file.seek(at)
            file.write(bytes(8))
    with pytest.raises(SystemExit):
        command("--max-unreadable", 0, path)
    reason = command.lines()["a"]["reason"]
    assert "tiles unreadable" in reason
    assert "more than --max-unreadable=0: copy" in reason
