"""Reads batches in threads ahead of their use, in order (tf.data as a thread pool)."""

import atexit
import collections
import functools
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from wsi_jax.data.tensorflow import import_tf


def parallel_batches(
    read: Callable[[int], tuple[np.ndarray, ...]],
    indices: range,
    *,
    dtypes: Sequence[Any],
    group: int,
    threads: int,
    prefetch: int,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Calls `read` on each index in threads and yields every `group` results, stacked.

    Threads and never processes: forking a process in which JAX runs can hang it. `read`
    returns arrays of `dtypes`, in one group of one shape; what it raises arrives
    unchanged. `indices` is a multiple of `group` long; `prefetch` batches are kept
    ready.
    """
    stream = _stream(read, indices, dtypes, group, threads, prefetch)
    _close_at_exit().add(stream)
    return stream


def _stream(read, indices, dtypes, group, threads, prefetch):
    tf = import_tf()
    raised = []

    def call(i):
        try:
            return read(int(i))
        except Exception as error:
            raised.append(error)
            raise

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    # Else tf.data has a thread per core, and threads that wait for a disk hold them.
    options.threading.private_threadpool_size = threads
    data = tf.data.Dataset.range(indices.start, max(indices.start, indices.stop))
    data = data.map(
        lambda i: tf.numpy_function(call, [i], [tf.as_dtype(t) for t in dtypes]),
        num_parallel_calls=threads,
    )
    data = data.batch(group).prefetch(prefetch).with_options(options)
    try:
        yield from data.as_numpy_iterator()
    except tf.errors.OpError:
        if raised:
            raise raised[0] from None
        raise


@functools.cache
def _close_at_exit():
    """The streams in use. One that is open while Python shuts down would hang it: its
    threads wait for an interpreter that waits for them."""
    streams = weakref.WeakSet()
    import_tf()  # what TensorFlow does at exit comes after
    atexit.register(lambda: [stream.close() for stream in list(streams)])
    return streams


def prefetch_to_device(
    batches: Iterable[Any], put: Callable[[Any], Any], depth: int
) -> Iterator[Any]:
    """Starts the transfer of the next batches while one is in use.

    `put` starts one and returns at once, as `jax.device_put` does; `depth` batches are
    on the device at a time, with the one in use.
    """
    batches = iter(batches)
    ahead = collections.deque(put(b) for b in itertools.islice(batches, depth))
    while ahead:
        out = ahead.popleft()
        yield out
        ahead.extend(put(b) for b in itertools.islice(batches, 1))
