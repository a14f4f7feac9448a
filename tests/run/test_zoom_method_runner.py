"""Zooming into slides on disk: as the method predicts, of what was chosen alone."""

import jax
import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_jax.data.cohort import Row
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.methods.sasha import SASHA, HAFEDStage, UpdaterStage
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder
from wsi_jax.nets.sasha import LOOKAHEAD
from wsi_jax.ops import zoom_env
from wsi_jax.run.inputs import TwoLevelInput
from wsi_jax.run.inputs.features import padded_bag
from wsi_jax.run.predict.zoom_method_runner import ZoomMethodRunner
from wsi_jax.run.tiling import Tiling, tile_slide
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.pyramid_writer import write_pyramid
from wsi_jax.slides.slide import SlideError
from wsi_jax.slides.tissue import Tissue
from wsi_jax.training.compile import compile_each, replicate
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Task, TwoLevelFeatures

K, SIZES = 2, ((1024, 1280), (1024, 1024), (1280, 1024))
TILING = Tiling(
    grid=Grid(mpp=2.0, size_px=64, min_tissue=0.5),
    tissue=Tissue(mpp=8.0),
    encoder=ConvNeXtEncoder(blocks=(1,), width=8, stem=8, scale=1.0),
)
METHOD = SASHA(
    children=K,
    zoom_share=0.2,
    standardise=True,
    hafed=HAFEDStage(branches=(1, 2)),
    updater=UpdaterStage(min_cosine=0.8),
)
STAGE = METHOD.stages(Task(("normal", "tumor")))[-1]
ONE = make_mesh(jax.devices()[:1])
READING = Reading(threads=2)


def picture(i):
    """Tissue of several colours, in squares of 128 px, and noise; a margin of glass."""
    rng, (h, w) = np.random.default_rng(i), SIZES[i]
    light = rng.integers(60, 200, (h // 128, w // 128, 3)).repeat(128, 0).repeat(128, 1)
    image = light + rng.normal(0, 30, (h, w, 1))
    image[:, :, 1] *= 0.6
    image[:256] = 245
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    paths = [folder / f"slide_{i}.tif" for i in range(len(SIZES))]
    for i, path in enumerate(paths):
        write_pyramid(path, picture(i), 1.0, quality=90)
    return paths


def tiled_slide(path, name=None):
    name = name or path.stem
    slide = tile_slide(Row(name, str(path), "", name, "", None), TILING)
    assert not slide.reason
    return slide


@pytest.fixture(scope="module")
def slides(paths):
    return [tiled_slide(path) for path in paths]


@pytest.fixture(scope="module")
def params():
    """Larger than they begin, so that a policy is not uniform."""
    rng = np.random.default_rng(0)
    row = rng.normal(0.5, 0.4, (20, 8)).astype(np.float32)
    bag = padded_bag(TwoLevelFeatures(row, row[:, None].repeat(K * K, 1)), 20)
    state = jax.jit(STAGE.method.init)(jax.random.key(0), bag)
    grown = {name: jax.tree.map(lambda a: 3 * a, p) for name, p in state.params.items()}
    grown["standardise"] = state.params["standardise"]
    return replicate(grown, ONE)


@pytest.fixture(scope="module")
def zooming(params):
    return ZoomMethodRunner(TILING, K, STAGE.rounds, params, ONE)


def zoom_into(zooming, slides, meter=None):
    return zooming(slides, 16, READING, meter or Meter())


@pytest.fixture(scope="module")
def together(zooming, slides):
    meter = Meter()
    return zoom_into(zooming, slides, meter), meter.as_dict()


def assert_same(one, other):
    np.testing.assert_array_equal(one.order, other.order)
    for name in ("logits", "attention"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_tiles_are_encoded_on_several_devices(slides, together, params):
    """Whose number divides neither tiles nor children."""
    mesh = make_mesh(jax.devices()[:3])
    split = ZoomMethodRunner(TILING, K, STAGE.rounds, params, mesh)
    outputs = split(slides, 15, READING, Meter())
    for one, alone in zip(outputs, together[0], strict=True):
        np.testing.assert_array_equal(one.order, alone.order)
        np.testing.assert_allclose(one.logits, alone.logits, atol=1e-5)


def test_it_is_the_prediction_of_the_method_on_all_features(slides, together, params):
    features = TwoLevelInput(METHOD, TILING, ONE)
    predict = compile_each(STAGE.method.predict, ONE)
    for one, slide in zip(together[0], slides, strict=True):
        bag = features.one(slide, 16, READING, Meter()).bag
        expected = jax.device_get(predict(params, bag, jax.random.key(0)))
        steps = expected.trace["steps"][0]
        np.testing.assert_array_equal(one.order, expected.trace["order"][0, :steps])
        np.testing.assert_allclose(one.logits, expected.logits[0], atol=1e-4)
        attention = expected.attention[0, : len(slide.yx)]
        np.testing.assert_allclose(one.attention, attention, atol=1e-5)


def test_a_share_of_the_tiles_is_read_finer_each_once(slides, together):
    for one, slide in zip(together[0], slides, strict=True):
        assert len(one.order) == zoom_env.horizon(METHOD.zoom_share, len(slide.yx)) > 3
        assert len(set(one.order.tolist())) == len(one.order)
        assert 0 <= one.order.min() <= one.order.max() < len(slide.yx)
        np.testing.assert_array_equal(one.kept, np.arange(len(slide.yx)))
        np.testing.assert_allclose(one.attention.sum(), 1, rtol=1e-5)
        assert not one.note


def test_several_slides_are_as_one_by_one(zooming, slides, together):
    """And cost as much."""
    whole, cost = together
    meter = Meter()
    for one, slide in zip(whole, slides, strict=True):
        (alone,) = zoom_into(zooming, [slide], meter)
        np.testing.assert_array_equal(alone.order, one.order)
        np.testing.assert_allclose(alone.logits, one.logits, atol=1e-5)
    for name in ("slides", "tiles"):
        assert cost[name] == meter.as_dict()[name]


def test_tiles_and_bytes_are_counted(slides, together):
    """Those read ahead in vain as well."""
    results, cost = together
    tiles, zooms = (
        sum(map(len, many))
        for many in ([s.yx for s in slides], [s.order for s in results])
    )
    assert cost["slides"] == len(slides)
    assert K**2 * zooms <= cost["tiles"] - tiles <= K**2 * (1 + LOOKAHEAD) * zooms
    assert cost["bytes_decoded"] >= 3 * 64**2 * (tiles + K**2 * zooms)


def stored(path, image, finest=None):
    """A pyramid of which every pixel is kept as it is; level 0 may be another's."""
    kind = {"photometric": "rgb", "tile": (256, 256), "compression": "deflate"}
    with tifffile.TiffWriter(path) as tiff:
        for i in range(3):
            level = np.asarray(Image.fromarray(image).reduce(2**i))
            scale = 1e4 / 2**i
            tiff.write(
                level if i or finest is None else finest,
                subfiletype=int(i > 0), resolution=(scale, scale),
                resolutionunit="CENTIMETER", metadata=None, **kind,
            )  # fmt: skip
    return path


def test_unread_pixels_never_change_a_prediction(zooming, tmp_path):
    """Bit by bit; those that were read do."""
    image, rng = picture(1), np.random.default_rng(9)
    slide = tiled_slide(stored(tmp_path / "slide.tif", image))
    (before,) = zoom_into(zooming, [slide])
    junk = rng.integers(0, 256, image.shape).astype(np.uint8)
    unread, read = junk.copy(), image.copy()
    for y, x in K * slide.yx[before.order]:
        at = slice(y, y + 128), slice(x, x + 128)
        unread[at], read[at] = image[at], junk[at]
    assert (unread != image).mean() > 0.5
    after, other = (
        zoom_into(
            zooming, [tiled_slide(stored(tmp_path / name, image, pixels), "slide")]
        )[0]
        for name, pixels in (("unread.tif", unread), ("read.tif", read))
    )
    assert_same(after, before)
    assert (other.logits != before.logits).any()


def damage(path, level):
    """The stored pixels of a level become noise."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[level]
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    rng = np.random.default_rng(0)
    with open(path, "r+b") as file:
        for offset, count in parts:
            file.seek(offset)
            file.write(rng.integers(0, 256, count, np.uint8).tobytes())


@pytest.mark.parametrize(("level", "others"), [(0, True), (1, True), (1, False)])
def test_a_damaged_slide_is_refused_and_others_are_not(
    zooming, slides, together, tmp_path, level, others
):
    """Where it is zoomed into, or as a whole; also by itself."""
    path = stored(tmp_path / "torn.tif", picture(1))
    torn = tiled_slide(path)
    damage(path, level)
    batch = [slides[0], torn, slides[2]] if others else [torn]
    results = zoom_into(zooming, batch)
    (refused,) = [one for one in results if isinstance(one, SlideError)]
    assert refused is results[1 if others else 0]
    assert str(refused).startswith("torn: ") or ": torn: " in str(refused)
    assert f"level {level} cannot be read" in str(refused)
    for one, expected in zip(results[::2], together[0][::2], strict=False):
        if others:
            np.testing.assert_array_equal(one.order, expected.order)
            np.testing.assert_allclose(one.logits, expected.logits, atol=1e-5)


def test_a_slide_that_has_gone_is_refused_as_well(zooming, paths, slides, tmp_path):
    path = tmp_path / "gone.tif"
    path.write_bytes(paths[1].read_bytes())
    gone = tiled_slide(path)
    path.unlink()
    results = zoom_into(zooming, [slides[0], gone])
    assert [isinstance(one, SlideError) for one in results] == [False, True]
    assert "gone" in str(results[1])
