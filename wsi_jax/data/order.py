"""Order of tiles and slides in training: pure functions of seed and step.

Resuming needs no saved state.
"""

import functools
import threading

import numpy as np
from jaxtyping import Int32, Int64, Shaped

TILES, BAGS, DRAW = 0, 1, 2  # separate the uses of one seed


def permutation(n: int, *key: int) -> Int64[np.ndarray, " n"]:
    """A permutation of range(n) that depends on nothing but the key, e.g. seed and
    epoch.

    Sorts raw random words: NumPy promises their stream for ever, but not that of
    `Generator.permutation`.
    """
    return np.argsort(np.random.PCG64(key).random_raw(n), kind="stable")


def epoch_order(n: int, seed: int, *key: int) -> Int64[np.ndarray, " n"]:
    """`permutation(n, seed, *key)`, cached: every batch of an epoch asks for it."""
    with _lock:  # threads wait for the first to sort, rather than all sort
        return _cached_permutation(n, seed, *key)


def tile_order(
    n: int, batch_size: int, step: int, seed: int | None
) -> Int64[np.ndarray, " b"]:
    """Indices of the tiles of batch `step`; -1 fills the last batch of a pass.

    Batches are of all processes, and steps are counted on through the passes; a seed
    gives each pass an order of its own.
    """
    epoch, step = divmod(step, -(-n // batch_size))
    index = np.arange(step * batch_size, (step + 1) * batch_size)
    real = index < n
    if seed is not None:
        index[real] = epoch_order(n, seed, TILES, epoch)[index[real]]
    return np.where(real, index, -1)


def slides_of_batch(
    seed: int,
    step: int,
    labels: Int32[np.ndarray, " slides"],
    batch_size: int,
    balanced: bool,
) -> Int64[np.ndarray, " b"]:
    """Indices of the slides of training batch `step` of all processes.

    Every slide comes once before any comes again, in a new order each time; a batch may
    hold the end of one order and the beginning of the next. Balanced, the classes take
    turns and each goes through its own slides so.
    """
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    if not balanced:
        return _stream(np.arange(len(labels)), position, seed, 0)
    classes = np.unique(labels)
    turn, position = position % len(classes), position // len(classes)
    index = np.empty(batch_size, np.int64)
    for i, label in enumerate(classes):
        slides = np.flatnonzero(labels == label)
        index[turn == i] = _stream(slides, position[turn == i], seed, 1 + i)
    return index


def draw_tiles(
    seed: int, step: int, slide: int, n: int, most: int
) -> Int64[np.ndarray, " {most}"]:
    """`most` of a slide's n tiles, in order, drawn anew at every step."""
    return np.sort(permutation(n, seed, DRAW, step, slide)[:most])


def filled_up(
    values: Shaped[np.ndarray, "b ..."], devices: int, fill: int = 0
) -> Shaped[np.ndarray, "rows ..."]:
    """The values of a batch, with rows behind them up to a multiple of the devices."""
    more = [(0, -len(values) % devices)] + [(0, 0)] * (values.ndim - 1)
    return np.pad(values, more, constant_values=fill)


def process_rows(batch_size: int, process: int, processes: int) -> slice:
    """The rows of a global batch that one process loads.

    ValueError: the batch does not divide among the processes.
    """
    if batch_size % processes:
        raise ValueError(
            f"a batch of {batch_size} does not divide among {processes} processes; "
            "make the batch a multiple of them"
        )
    rows = batch_size // processes
    return slice(process * rows, (process + 1) * rows)


def _stream(slides, position, seed, which):
    """Slides at some positions of an endless run of orders of them."""
    epoch, place = np.divmod(position, len(slides))
    index = np.empty(len(position), np.int64)
    for e in np.unique(epoch):
        order = epoch_order(len(slides), seed, BAGS, which, int(e))
        index[epoch == e] = slides[order[place[epoch == e]]]
    return index


_lock = threading.Lock()


@functools.lru_cache(maxsize=4)
def _cached_permutation(n, *key):
    order = permutation(n, *key)
    order.flags.writeable = False
    return order
