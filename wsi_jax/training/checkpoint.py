"""Checkpoints: the whole state, and JSON that a run keeps beside it."""

import errno
import hashlib
import os
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from wsi_jax.files import any_path, is_remote
from wsi_jax.training.processes import exchange_json

SPARE = 1 << 20  # bytes for what Orbax writes around the arrays


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names it and the mend."""


class Checkpoints:
    """A folder of checkpoints by step; the newest are kept, incomplete ones removed.

    Args:
        keep: how many are kept.
        together: whether all processes of a run use it in step.
    """

    def __init__(
        self, folder: str | os.PathLike, keep: int = 1, together: bool = False
    ):
        self._together = together
        newest = ocp.checkpoint_managers.LatestN(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=newest,
            cleanup_tmp_directories=True,
            # Threads of two managers would meet at one place of several processes.
            enable_async_checkpointing=jax.process_count() == 1,
        )
        handlers = {
            "tree": ocp.StandardCheckpointHandler(),
            "memory": ocp.JsonCheckpointHandler(),
        }
        folder = any_path(folder)
        self._manager = ocp.CheckpointManager(
            folder if is_remote(folder) else folder.absolute(),
            options=options,
            item_handlers=handlers,
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
        if is_remote(self._manager.directory):  # a bucket is never full
            return
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(_keys_as_data(tree)))
        if shutil.disk_usage(self._manager.directory).free < size + SPARE:
            full = errno.ENOSPC
            raise OSError(full, os.strerror(full), str(self._manager.directory))

    def memory(self) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint's step and JSON, without its tree; or None."""
        step = self._latest()
        if step is None:
            return None
        return step, self._restore(step, memory=ocp.args.JsonRestore())["memory"]

    def restore(self, like: Any = None) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint, or None.

        Args:
            like: a tree of the same structure: of arrays, on whose devices the
                checkpoint's are placed, whichever they were saved from; or of shapes
                and types, for the first device. None for the saved structure, of a
                tree without keys, on the first device.

        Raises:
            CheckpointError: it is damaged, or has another structure.
        """
        step = self._latest()
        if step is None:
            return None
        if like is None:
            like = self._saved_shapes(step)
        restored = self._restore(
            step,
            tree=ocp.args.StandardRestore(jax.tree.map(_target, _keys_as_data(like))),
            memory=ocp.args.JsonRestore(),
        )
        return _data_as_keys(restored["tree"], like), restored["memory"]

    def _latest(self) -> int | None:
        """The newest step, as process 0 sees it: another may see a folder late."""
        own = self._manager.latest_step()
        step, *_ = exchange_json(own) if self._together else [own]
        if step != own:
            self._manager.reload()
        return step

    def _saved_shapes(self, step):
        shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return jax.tree.map(shape, self._manager.item_metadata(step)["tree"].tree)

    def _restore(self, step, **items):
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except jax.errors.JaxRuntimeError:  # of a device, or of another process
            raise
        except Exception as error:  # what Orbax raises depends on what is damaged
            reason = str(error).partition("\n")[0] or type(error).__name__
            folder = self._manager.directory
            raise CheckpointError(
                f"{folder / str(step)} is damaged or of another method ({reason}): put "
                f"back what was there, or delete {folder.parent} to train it anew"
            ) from error

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk, and ends."""
        self.wait()
        self._manager.close()


def digest(tree: Any) -> str:
    """16 hex digits that change with the name or value of any array of a tree."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name, array = jax.tree_util.keystr(path), np.asarray(leaf)
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()[:16]


def is_finite(tree: Any) -> bool:
    """Whether all numbers of a tree of arrays are finite."""
    floats = (a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact))
    # On the host: a device would compile a program for every shape.
    return all(np.isfinite(np.asarray(array)).all() for array in floats)


def _target(leaf) -> jax.ShapeDtypeStruct:
    """Shape, type and devices of an array to restore.

    Orbax would place it on the devices it was saved from, which may be absent.
    """
    struct = ocp.tree.to_shape_dtype_struct(leaf)
    if struct.sharding is not None:
        return struct
    first = SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=first)


def is_key(leaf: Any) -> bool:
    """Whether a leaf of a tree is a random key."""
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _keys_as_data(tree):
    data = lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf
    return jax.tree.map(data, tree)


def _data_as_keys(tree, like):
    wrap = lambda leaf, key: (
        jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(key))
        if is_key(key)
        else leaf
    )
    return jax.tree.map(wrap, tree, like)
