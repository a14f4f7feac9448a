"""The account adds up: over threads, over nested blocks, over a resumed run."""

import json
import threading
import time

import pytest

from wsi_jax.evals.cost import Meter, _Span, merge


def test_a_span_counts_every_thread_and_their_union():
    span = _Span()
    span.enter(0.0)  # first thread
    span.enter(2.0)  # second
    span.leave(3.0)
    assert span.until(4.0) == (5.0, 4.0)  # one block is still open
    span.leave(5.0)
    span.enter(10.0)
    span.leave(11.0)
    assert span.until(99.0) == (7.0, 6.0)


class Slow(int):
    """A number that lets another thread run while it is being added."""

    def __radd__(self, other):
        time.sleep(1e-4)
        return int(other) + int(self)


def test_no_addition_is_lost_between_threads():
    meter = Meter()

    def work():
        for _ in range(50):
            with meter.span("read"):
                meter.add(tiles=Slow(1), bytes_decoded=3, flops=0.5)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = meter.as_dict()
    assert (found["tiles"], found["bytes_decoded"], found["flops"]) == (
        400,
        1200,
        200,
    )
    assert 0 < found["span.read.wall_s"] <= found["span.read.thread_s"]
    assert found["span.read.wall_s"] <= found["wall_s"]
    assert 0 < found["span.read.percent"] <= 100


def test_a_block_that_fails_is_closed():
    meter = Meter()
    with pytest.raises(OSError, match="bad tile"), meter.span("read"):
        raise OSError("bad tile")
    first = meter.as_dict()["span.read.wall_s"]
    assert meter.as_dict()["span.read.wall_s"] == first


def test_memory_is_the_peak():
    block = bytearray(50_000_000)
    found = Meter(device_bytes=lambda: 7).as_dict()
    assert found["peak_host_bytes"] > len(block)
    assert found["peak_device_bytes"] == 7
    assert Meter().as_dict()["peak_device_bytes"] is None


def part(slides, wall_s, device, **spans):
    counts = {"tiles": 10 * slides, "bytes_decoded": slides, "flops": 0, "device_s": 1}
    peaks = {"peak_host_bytes": 100 * slides, "peak_device_bytes": device}
    times = {
        f"span.{name}.{kind}": seconds
        for name, seconds in spans.items()
        for kind in ("thread_s", "wall_s")
    }
    return {"slides": slides, "wall_s": wall_s} | counts | peaks | times


def test_parts_of_a_run_add_up_and_peaks_do_not():
    a, b = part(1, 4.0, None, read=1.0), part(3, 6.0, 8, read=2.0, encode=5.0)
    c = part(2, 10.0, 4)
    total = merge(a, b)
    assert (total["slides"], total["wall_s"], total["tiles_per_s"]) == (4, 10.0, 4.0)
    assert (total["peak_host_bytes"], total["peak_device_bytes"]) == (300, 8)
    assert (total["span.read.percent"], total["span.encode.percent"]) == (30, 50)
    assert merge(merge(a, b), c) == merge(a, merge(b, c)) == merge(a, b, c)


def test_a_resumed_run_continues_the_account():
    meter = Meter()
    meter.add(slides=2, tiles=30)
    with meter.span("encode"):
        pass
    earlier = json.loads(json.dumps(meter.as_dict()))
    resumed = Meter(earlier=earlier)
    resumed.add(slides=1, tiles=5)
    found = resumed.as_dict()
    assert (found["slides"], found["tiles"]) == (3, 35)
    assert found["wall_s"] > earlier["wall_s"]
    assert found["span.encode.thread_s"] == earlier["span.encode.thread_s"]
