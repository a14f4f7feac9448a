"""Holds a published encoder against its PyTorch original, on weights at hand."""

import dataclasses
import importlib.util
import pathlib

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from wsi_jax.data.cohort import Row
from wsi_jax.nets.foundation_models import FoundationModel, foundation_model
from wsi_jax.nets.torch_reference_vit import torch_features
from wsi_jax.run.run_folder import RunError
from wsi_jax.run.tiling import Tiling, tile_slide
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.slide import open_slide

LEAST_COSINE = 0.999
TILES, AT_ONCE = 32, 8
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
NO_TORCH = (
    "the original runs in PyTorch, which is not installed: pip install torch "
    "--index-url https://download.pytorch.org/whl/cpu"
)


def check_encoder(
    name: str, weights: str, tiles: str = "", mpp: float | None = None
) -> Float[np.ndarray, " n"]:
    """Cosine of our features and PyTorch's, of each tile.

    Args:
        name: name of the encoder in encoders.toml.
        weights: its `.safetensors` file.
        tiles: a slide, or a folder of images of tiles; "" for noise.
        mpp: um/px of the slide, where its file does not say.

    Raises:
        ValueError: no such encoder, weights that are not its, no tiles.
    """
    model = foundation_model(name)
    encoder = dataclasses.replace(model.encoder, weights=weights)
    if not pathlib.Path(weights).is_file():
        raise RunError(f"--weights {weights}: no such file")
    if importlib.util.find_spec("torch") is None:
        raise RunError(NO_TORCH)
    pixels = read_pixels(model, tiles, mpp)
    params = encoder.params()  # weights of another net are refused here
    theirs = _in_batches(lambda x: torch_features(encoder, x), pixels)
    apply = jax.jit(encoder.make().apply)
    return cosines(_in_batches(lambda x: np.asarray(apply(params, x)), pixels), theirs)


def cosines(
    ours: Float[np.ndarray, "n d"], theirs: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " n"]:
    """Cosine of two vectors of each tile."""
    unit = lambda a: a / np.linalg.norm(a.astype(np.float64), axis=1, keepdims=True)
    return (unit(ours) * unit(theirs)).sum(1)


def read_pixels(
    model: FoundationModel, tiles: str, mpp: float | None
) -> UInt8[np.ndarray, "n h w 3"]:
    """At most 32 tiles of an encoder's size, from all over the slide or folder."""
    side = model.tile_px
    if not tiles:
        shape = TILES, side, side, 3
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if pathlib.Path(tiles).is_dir():
        return _read_images(pathlib.Path(tiles), side)
    grid = Grid(mpp=model.mpp or 0.5, size_px=side)
    name = pathlib.Path(tiles).stem
    slide = tile_slide(Row(name, tiles, "", name, "", mpp), Tiling(grid=grid))
    if slide.reason:
        raise RunError(slide.reason)
    with open_slide(tiles, mpp) as opened:
        yx = slide.yx[_spread(len(slide.yx))]
        return np.stack([opened.read(tuple(at), side, grid.mpp) for at in yx])


def _read_images(folder: pathlib.Path, side: int) -> UInt8[np.ndarray, "n h w 3"]:
    """The middle of each image."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES)
    if not paths:
        raise RunError(f"{folder}: no images in it ({', '.join(IMAGES)})")
    tiles = []
    for path in (paths[i] for i in _spread(len(paths))):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        y, x = ((n - side) // 2 for n in pixels.shape[:2])
        if min(y, x) < 0:
            shape = "{1} x {0}".format(*pixels.shape)
            raise RunError(f"{path}: {shape} px; the encoder's tiles have {side}")
        tiles.append(pixels[y : y + side, x : x + side])
    return np.stack(tiles)


def report(cosines: Float[np.ndarray, " n"]) -> str:
    """The outcome in one line."""
    verdict = "as the original" if is_alike(cosines) else "NOT as the original"
    return (
        f"{len(cosines)} tiles: cosine {cosines.min():.6f} at worst, "
        f"{cosines.mean():.6f} on average; {verdict} (limit {LEAST_COSINE:g})"
    )


def is_alike(cosines: Float[np.ndarray, " n"]) -> bool:
    """Whether every tile's features are those of the original; NaN is not."""
    return bool((cosines >= LEAST_COSINE).all())


def _spread(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, TILES)).round().astype(int))


def _in_batches(features, pixels) -> np.ndarray:
    """Features of all tiles, some at a time, each batch of one size."""
    pad = -len(pixels) % AT_ONCE
    padded = np.concatenate([pixels, np.zeros((pad, *pixels.shape[1:]), np.uint8)])
    parts = [features(padded[i : i + AT_ONCE]) for i in range(0, len(padded), AT_ONCE)]
    return np.concatenate(parts)[: len(pixels)]
