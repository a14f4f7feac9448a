"""The programs of all methods, those that `wsi_jax` compiles, and their shapes.

Configs are those of `wsi-jax train --method`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct as Shape

from benchmarks.crop_programs import crop_programs
from benchmarks.program_shapes import KEY, Program, Sizes, bag, placed, stages_of
from benchmarks.streaming_programs import streaming_programs
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder, Depth, Encoder
from wsi_jax.nets.foundation_models import foundation_model
from wsi_jax.nets.norm import NormKind
from wsi_jax.training.compile import compile_encoder, compile_method
from wsi_jax.types import Bag, Dtype, TwoLevelFeatures

POOLS = ("mean", "max", "abmil", "clam_sb", "clam_mb")
# Slides measure 20 mm on a side where a method sees overviews; some of twice the area
# say what of its time is the overviews'.
PRODUCTION = Sizes(
    variant="",
    tiles=100_000,
    features=1024,
    encoders=("resnet50", "convnext", "vit_s16", "vit_l16", "vit_g16"),
    extracted=256,
    slides_um=(20_000, 28_000),
    zoom_tiles=(1_000, 10_000),
    slides=64,
    tiles_px=(1024, 2048, 4096),
)
SMALLEST = Sizes(
    variant=":quick",
    tiles=256,
    features=64,
    encoders=("resnet50", "convnext", "vit_s16"),
    extracted=8,
    slides_um=(2_000,),
    zoom_tiles=(64,),
    slides=8,
    tiles_px=(512,),
)


def programs(sizes: Sizes = PRODUCTION) -> Iterator[Program]:
    """All programs, those of streaming last."""
    for name in POOLS:
        yield from bag_programs(name, sizes)
    yield from extraction_programs(sizes)
    yield from crop_programs(sizes)
    yield from sasha_programs(sizes)
    yield from streaming_programs(sizes)


def step_and_prediction(
    method: str, stage: Any, batch: Callable[[int], Bag], size: str, steps=True
) -> Iterator[Program]:
    """The training step and the prediction of a stage.

    Args:
        batch: number of devices -> shapes of a batch.
        size: of the batch, in words.
    """

    def compiled(mesh):
        functions, slides = compile_method(stage.method, mesh), batch(mesh.size)
        state = jax.eval_shape(functions.init, KEY, slides)
        return functions, placed(mesh, state), placed(mesh, slides, "data")

    def step(mesh):
        functions, state, slides = compiled(mesh)
        return functions.step, (state, slides)

    def predict(mesh):
        functions, state, slides = compiled(mesh)
        return functions.predict, (state.params, slides, placed(mesh, KEY))

    if steps:
        yield Program(method, f"step, {size}", step)
    yield Program(method, f"prediction, {size}", predict)


def bag_programs(method: str, sizes: Sizes) -> Iterator[Program]:
    """A bag of all tiles of one slide for each device."""

    def batch(devices):
        x = Shape((devices, sizes.tiles, sizes.features), jnp.float16)
        return bag(x, Shape(x.shape[:2], jnp.bool_))

    (stage,) = stages_of(sizes.config(method))
    size = f"{sizes.tiles:,} x {sizes.features:,}"
    yield from step_and_prediction(method, stage, batch, size)


def extraction_programs(sizes: Sizes) -> Iterator[Program]:
    """Features of a batch of tiles, one for each family and size of encoders."""
    resnet = Encoder(depth=Depth.resnet50, stages=3, norm=NormKind.frozen)
    encoders = {"resnet50": resnet, "convnext": ConvNeXtEncoder()}
    names = {"vit_s16": "lunit_s16", "vit_l16": "uni", "vit_g16": "gigapath"}
    for name, model in names.items():
        encoders[name] = foundation_model(model).encoder
    for name in sizes.encoders:
        encoder = dataclasses.replace(encoders[name], dtype=Dtype.bfloat16, weights="")

        def make(mesh, encoder=encoder):
            net = encoder.make()
            pixels = Shape((sizes.extracted * mesh.size, 224, 224, 3), jnp.uint8)
            params = jax.eval_shape(net.init, KEY)
            encode = compile_encoder(net.apply, mesh)
            return encode, (placed(mesh, params), placed(mesh, pixels, "data"))

        yield Program("extract", f"{name}, {sizes.extracted} x 224 px", make)


def sasha_programs(sizes: Sizes) -> Iterator[Program]:
    """HAFED, the updater and the policy; slides of few and of many tiles."""
    config = sizes.config("sasha")
    hafed, updater, ranking, policy = stages_of(config)
    children = config.method.children**2

    def batch(stage, n, slides=None):
        def shapes(devices):
            b = (slides or config.stage_train(stage).batch) * devices
            low = Shape((b, n, sizes.features), jnp.float16)
            high = Shape((b, n, children, sizes.features), jnp.float16)
            if stage is not hafed:  # distilled
                low = high = Shape((b, n, sizes.features), jnp.float32)
            return bag(TwoLevelFeatures(low, high), Shape((b, n), jnp.bool_))

        return shapes

    for n in sizes.zoom_tiles:
        for stage in (hafed, updater, ranking):
            size = f"{n:,} tiles x {config.stage_train(stage).batch} slides"
            name = f"sasha {stage.name}"
            predicts = stage is hafed
            one = batch(stage, n)
            both = list(step_and_prediction(name, stage, one, size))
            yield from both if predicts else both[:1]
        few = config.stage_train(policy).batch
        for slides in dict.fromkeys((few, sizes.slides)):
            size = f"{n:,} tiles x {slides} slides"
            given = batch(policy, n, slides)
            yield from step_and_prediction("sasha policy", policy, given, size)
