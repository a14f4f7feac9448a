import subprocess
import sys
import threading

import numpy as np
import pytest

from wsi_jax.data.prefetch import parallel_batches, prefetch_to_device


def batches(read, stop, **options):
    given = {"group": 2, "threads": 4, "prefetch": 1} | options
    return parallel_batches(read, range(stop), **given)


def test_results_are_in_order_though_calls_overlap():
    third = threading.Event()

    def read(i):
        if i == 3:
            third.set()
        if i < 3:
            assert third.wait(30)  # passes only when four calls run at once
        return (np.full(3, i),)

    out = [x for (x,) in batches(read, 8)]
    np.testing.assert_array_equal(np.concatenate(out)[:, 0], np.arange(8))
    assert out[0].shape == (2, 3)


def test_an_error_arrives_as_it_was_raised_and_an_empty_range_has_no_batch():
    def read(i):
        if i == 3:
            raise KeyError("slide_17")
        return (np.int64(i),)

    stream = batches(read, 8)
    np.testing.assert_array_equal(next(stream)[0], [0, 1])
    with pytest.raises(KeyError, match="slide_17"):
        next(stream)
    assert list(batches(read, 0)) == []


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetch_changes_nothing_but_the_time_of_transfers(depth):
    put = []
    stream = prefetch_to_device(
        iter(range(4)), lambda b: put.append(b) or b * 10, depth
    )
    assert next(stream) == 0
    assert put == list(range(min(depth, 4)))
    assert list(stream) == [10, 20, 30]
    assert put == [0, 1, 2, 3]


PROGRAM = """
import time
import numpy as np
from wsi_jax.data.prefetch import parallel_batches
from wsi_jax.data.tensorflow import import_tf

def read(i):
    time.sleep(0.05)
    return (np.int64(i),)

endless = parallel_batches(read, range(10**9), group=2, threads=4, prefetch=1)
print(next(endless)[0].tolist(), import_tf().config.get_visible_devices("GPU"))
"""


def test_a_program_is_quiet_and_ends_while_batches_are_still_being_read():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0, 1] []"  # TensorFlow leaves the GPUs to JAX
    assert "Error" not in done.stderr
    assert "Warning" not in done.stderr
