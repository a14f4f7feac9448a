"""Published foundation models, as listed in `encoders.toml`."""

import dataclasses
import difflib
import enum
import functools
import pathlib
import tomllib

from wsi_jax.nets.vit_encoder import ViTEncoder

_FILE = pathlib.Path(__file__).with_name("encoders.toml")
RECIPE = (
    'python -c "import torch, safetensors.torch as s; '
    "s.save_file({k: v.contiguous() for k, v in torch.load('pytorch_model.bin', 'cpu', "
    "weights_only=True).items()}, 'model.safetensors')\""
)


@dataclasses.dataclass(kw_only=True)
class FoundationModel:
    """A published encoder.

    Attributes:
        title: name and paper.
        hub: repository on huggingface.co with its weights.
        file: file of the weights there; one that is no safetensors file must be
            converted.
        encoder: the encoder, without weights: set `weights` to the path of that file.
        gated: whether the repository asks for consent first.
        tile_px: side of the tiles it was trained on, in pixels.
        mpp: um/px of these tiles; None where it was trained on photographs.
        pretrained_on: cohorts that it has learnt from; () where none is known.
        note: remarks.
    """

    title: str
    hub: str
    file: str
    encoder: ViTEncoder
    gated: bool = False
    tile_px: int = 224
    mpp: float | None = None
    pretrained_on: tuple[str, ...] = ()
    note: str = ""


def model_names() -> tuple[str, ...]:
    """Names of all models, in the order of the file."""
    return tuple(_read())


def foundation_model(name: str) -> FoundationModel:
    """A published encoder by its name, a new copy each time.

    Raises:
        ValueError: for an unknown name, naming the nearest.
    """
    models = _read()
    if name not in models:
        near = difflib.get_close_matches(name, models, 1) or [", ".join(models)]
        raise ValueError(f"no encoder {name!r} is known; did you mean {near[0]}?")
    fields = models[name]
    cohorts = tuple(fields.get("pretrained_on", ()))
    encoder = _encoder(fields["encoder"])
    encoder.pretrained_on = cohorts
    return FoundationModel(**fields | {"encoder": encoder, "pretrained_on": cohorts})


def markdown_table() -> str:
    """Table of all models in Markdown: weights, tiles, colours and output."""
    header = (
        "| name | encoder | weights | tiles | mean; std | output | learnt from | note |"
    )
    lines = [header, "|---" * 8 + "|"]
    for name in model_names():
        model = foundation_model(name)
        net = model.encoder
        where = f"[`{model.hub}`](https://huggingface.co/{model.hub}): `{model.file}`"
        colours = (", ".join(f"{v:.3g}" for v in rgb) for rgb in (net.mean, net.std))
        cells = (
            f"`{name}`",
            model.title,
            where + (", gated" if model.gated else ""),
            f"{model.tile_px} px" + (f" at {model.mpp:g} um/px" if model.mpp else ""),
            "; ".join(colours),
            f"{net.output.name.replace('_', ' ')}, {net.make().dim:,}",
            ", ".join(model.pretrained_on),
            model.note,
        )
        lines.append("| " + " | ".join(cells) + " |")
    footnote = (
        "A `.bin` is a pickle, which is never loaded here; make it a safetensors file "
        f"where PyTorch is installed, of a source that you trust: `{RECIPE}`"
    )
    return "\n".join([*lines, "", footnote])


@functools.cache
def _read():
    with open(_FILE, "rb") as file:
        return tomllib.load(file)


def _encoder(fields) -> ViTEncoder:
    kinds = {field.name: field.type for field in dataclasses.fields(ViTEncoder)}

    def value(name, plain):
        kind = kinds[name]
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return kind[plain]
        return tuple(plain) if isinstance(plain, list) else plain

    return ViTEncoder(**{name: value(name, plain) for name, plain in fields.items()})
