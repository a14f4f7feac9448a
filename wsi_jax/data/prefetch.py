"""Reads batches in threads ahead of their use, in order."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


def parallel_batches(
    read: Callable[[int], tuple[np.ndarray, ...]],
    indices: range,
    *,
    group: int,
    threads: int,
    prefetch: int,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Calls `read` on each index in threads and yields every `group` results, stacked.

    Threads and never processes: forking a process in which JAX runs can hang it. `read`
    returns arrays, in one group of one shape; what it raises arrives unchanged.
    `indices` is a multiple of `group` long; `prefetch` batches are kept ready.
    """
    todo = iter(indices)
    with ThreadPoolExecutor(threads) as pool:
        submit = lambda n: [pool.submit(read, i) for i in itertools.islice(todo, n)]
        ahead = collections.deque(submit(group * prefetch + threads))
        try:
            for _ in range(len(indices) // group):
                ahead.extend(submit(group))
                results = [ahead.popleft().result() for _ in range(group)]
                yield tuple(map(np.stack, zip(*results, strict=True)))
        finally:
            pool.shutdown(cancel_futures=True)


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
