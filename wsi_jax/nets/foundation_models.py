"""Encoders whose weights are to be had: `encoders.toml`, read."""

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
class Known:
    """Facts of an encoder that others have trained.

    Attributes:
        title: its name, and its paper.
        hub: repository on huggingface.co with its weights.
        file: there; if it is no safetensors file, it has to be made one.
        encoder: to be given the path of that file as its `weights`.
        gated: whether the repository asks for consent first.
        tile_px: side of the tiles that it was made for.
        mpp: um/px of these tiles; None where it has learnt from photographs.
        note: what else there is to know.
    """

    title: str
    hub: str
    file: str
    encoder: ViTEncoder
    gated: bool = False
    tile_px: int = 224
    mpp: float | None = None
    note: str = ""


def names() -> tuple[str, ...]:
    """Of all there are, in the order of the file."""
    return tuple(_read())


def known(name: str) -> Known:
    """The facts of one; its encoder is a new one each time.

    Raises:
        ValueError: naming the nearest.
    """
    read = _read()
    if name not in read:
        near = difflib.get_close_matches(name, read, 1) or [", ".join(read)]
        raise ValueError(f"no encoder {name!r} is known; did you mean {near[0]}?")
    told = read[name]
    return Known(**told | {"encoder": _encoder(told["encoder"])})


def table() -> str:
    """All of them in Markdown: what to fetch, what it wants, what it gives."""
    header = "| name | encoder | weights | tiles | mean; std | output | note |"
    lines = [header, "|---" * 7 + "|"]
    for name in names():
        it = known(name)
        net = it.encoder
        where = f"[`{it.hub}`](https://huggingface.co/{it.hub}): `{it.file}`"
        colours = (", ".join(f"{v:.3g}" for v in rgb) for rgb in (net.mean, net.std))
        cells = (
            f"`{name}`",
            it.title,
            where + (", gated" if it.gated else ""),
            f"{it.tile_px} px" + (f" at {it.mpp:g} um/px" if it.mpp else ""),
            "; ".join(colours),
            f"{net.output.name.replace('_', ' ')}, {net.make().dim:,}",
            it.note,
        )
        lines.append("| " + " | ".join(cells) + " |")
    said = (
        "A `.bin` is a pickle, which is never loaded here; make it a safetensors file "
        f"where PyTorch is installed, of a source that you trust: `{RECIPE}`"
    )
    return "\n".join([*lines, "", said])


@functools.cache
def _read():
    with open(_FILE, "rb") as file:
        return tomllib.load(file)


def _encoder(told) -> ViTEncoder:
    kinds = {field.name: field.type for field in dataclasses.fields(ViTEncoder)}

    def value(name, plain):
        kind = kinds[name]
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return kind[plain]
        return tuple(plain) if isinstance(plain, list) else plain

    return ViTEncoder(**{name: value(name, plain) for name, plain in told.items()})
