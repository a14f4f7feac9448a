"""Checkpoints: the whole state, and beside it whatever JSON a run must remember."""

import errno
import hashlib
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

SPARE = 1 << 20  # bytes for what Orbax writes around the arrays


class Checkpoints:
    """A folder of checkpoints by step, the newest kept; half ones are cleared away.

    Args:
        folder: made if absent.
        keep: how many.
    """

    def __init__(self, folder: str | pathlib.Path, keep: int = 1):
        newest = ocp.checkpoint_managers.LatestN(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=newest, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(
            pathlib.Path(folder).absolute(), options=options
        )

    def save(self, step: int, tree: Any, memory: dict[str, Any]) -> None:
        """Writes a tree of arrays and keys; returns before it is on disk.

        A step that is there already, of a run killed since, is replaced.

        Raises:
            OSError: the disk has no room for it; it names the folder. What was saved
                before stays.
        """
        self._check_room(tree)
        if step in self._manager.all_steps():
            self._manager.delete(step)
        args = ocp.args.Composite(
            tree=ocp.args.StandardSave(_keys_as_data(tree)),
            memory=ocp.args.JsonSave(memory),
        )
        self._manager.save(step, args=args, force=True)

    def _check_room(self, tree: Any) -> None:
        """Orbax would leave half a checkpoint, and pages of its threads' errors."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(_keys_as_data(tree)))
        if shutil.disk_usage(self._manager.directory).free < size + SPARE:
            full = errno.ENOSPC
            raise OSError(full, os.strerror(full), str(self._manager.directory))

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint, structured and laid out as `like`; or None."""
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.tree.to_shape_dtype_struct, _keys_as_data(like))
        args = ocp.args.Composite(
            tree=ocp.args.StandardRestore(abstract), memory=ocp.args.JsonRestore()
        )
        found = self._manager.restore(step, args=args)
        return _data_as_keys(found["tree"], like), found["memory"]

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk, and ends."""
        self.wait()
        self._manager.close()


def digest(tree: Any) -> str:
    """16 hex digits that change when any array of a tree does, in name or value."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name, array = jax.tree_util.keystr(path), np.asarray(leaf)
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:16]


def _is_key(leaf) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _keys_as_data(tree):
    data = lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return jax.tree.map(data, tree)


def _data_as_keys(tree, like):
    wrap = lambda leaf, key: (
        jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(key))
        if _is_key(key)
        else leaf
    )
    return jax.tree.map(wrap, tree, like)
