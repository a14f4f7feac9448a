"""Weights in safetensors files, under PyTorch's names and in PyTorch's layout."""

import os
from collections.abc import Callable

import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree
from safetensors.numpy import save_file

from wsi_jax.files import replacing

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "gamma": "gamma",
    "cls_token": "cls_token",
    "reg_token": "reg_token",
    "pos_embed": "pos_embed",
}
# Axes of a kernel in PyTorch's layout, by rank: [i o] -> [o i], [h w i o] -> [o i h w].
_TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}
# Suffixes of PyTorch's buffers, which our nets do not have.
_BUFFERS = (".num_batches_tracked", ".bias_mask")


class WeightsError(ValueError):
    """A file of weights that does not fit the net."""


def load(
    path: str | os.PathLike,
    like: PyTree,
    ignore: tuple[str, ...] = (),
    rename: Callable[[str], tuple[str, int]] = lambda name: (name, 0),
) -> PyTree:
    """Loads weights of a file with PyTorch's names as parameters of one of our nets.

    Args:
        like: the `params` collection of the net, as arrays or
            `jax.ShapeDtypeStruct`s; the weights are cast to its dtypes.
        ignore: prefixes of names in the file that the net does not have, such as
            "fc."; buffers are always ignored.
        rename: name in the file -> the net's name for it, and its position along the
            first axis where several tensors of the file make one parameter.

    Returns:
        numpy arrays in the tree of `like`.

    Raises:
        WeightsError: names are missing or unexpected, or shapes disagree; or the file
            is no safetensors file.
    """
    wanted = flatten_dict(like)
    try:
        with safetensors.safe_open(path, "numpy") as file:
            parts = _parts(file.keys(), rename)
            shape = lambda name: tuple(file.get_slice(name).get_shape())
            there = {name: _stacked(map(shape, p)) for name, p in parts.items()}
            _check(path, there, parts, wanted, ignore)
            tensors = {
                where: np.concatenate([*map(file.get_tensor, parts[_name(where)])])
                for where in wanted
            }
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from error
    return unflatten_dict(
        {where: _to_ours(where, t, wanted[where].dtype) for where, t in tensors.items()}
    )


def read_tensors(
    path: str | os.PathLike, rename: Callable[[str], tuple[str, int]]
) -> dict[str, np.ndarray]:
    """Tensors of a file in PyTorch's layout, under the names that `rename` gives.

    Raises:
        WeightsError: the file is no safetensors file.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return {
                name: np.concatenate([np.atleast_1d(file.get_tensor(p)) for p in parts])
                for name, parts in _parts(file.keys(), rename).items()
            }
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from error


def save(path: str | os.PathLike, params: PyTree, metadata: dict[str, str]) -> None:
    """Writes parameters to a file that `load` and PyTorch read, whole or not at all."""
    tensors = {
        # The format stores bytes as they lie: a transposed view must be laid out anew.
        _name(where): np.ascontiguousarray(
            np.asarray(leaf).transpose(_axes(where, leaf.ndim))
        )
        for where, leaf in flatten_dict(params).items()
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Metadata in a file's header; {} where there is none.

    Raises:
        WeightsError: the file is no safetensors file.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from error


def _parts(names, rename) -> dict[str, list[str]]:
    """Names in the file by the net's name, parts of one parameter in order."""
    parts = {}
    for name in names:
        ours, part = rename(name)
        parts.setdefault(ours, []).append((part, name))
    return {ours: [name for _, name in sorted(p)] for ours, p in parts.items()}


def _stacked(shapes) -> tuple[int, ...]:
    """Shape of parts joined along the first axis; () for a scalar."""
    first, *more = shapes
    return first and (first[0] + sum(shape[0] for shape in more), *first[1:])


def _check(path, there, parts, wanted, ignore):
    expected = {
        _name(where): tuple(leaf.shape[a] for a in _axes(where, len(leaf.shape)))
        for where, leaf in wanted.items()
    }
    unasked = {
        theirs
        for name in there.keys() - expected.keys()
        for theirs in parts[name]
        if not name.startswith(ignore) and not name.endswith(_BUFFERS)
    }
    problems = {
        "missing from the file": sorted(expected.keys() - there.keys()),
        "unexpected in the file": sorted(unasked),
        "of another shape": [
            f"{name} {there[name]} for {shape}"
            for name, shape in sorted(expected.items())
            if name in there and there[name] != shape
        ],
    }
    if any(problems.values()):
        lines = (f"{what}: {_some(names)}" for what, names in problems.items() if names)
        raise WeightsError(f"{path} does not fit the net; {'; '.join(lines)}")


def _some(names: list[str], most: int = 12) -> str:
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join(names[:most] + more)


def _to_ours(where, tensor, dtype):
    return tensor.transpose(np.argsort(_axes(where, tensor.ndim))).astype(dtype)


def _name(where: tuple[str, ...]) -> str:
    return ".".join((*where[:-1], _LEAVES[where[-1]]))


def _axes(where: tuple[str, ...], rank: int) -> tuple[int, ...]:
    return _TO_TORCH[rank] if where[-1] == "kernel" else tuple(range(rank))
