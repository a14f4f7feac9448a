"""The account adds up: over threads, over nested blocks, over a resumed run."""

import json
import threading
import time

import pytest

from wsi_jax.evals.cost_meter import WORK, Meter, _Span, total


def test_a_span_counts_every_thread_and_their_union():
    span = _Span()
    span.record(0.0)  # first thread
    span.record(2.0)  # second
    span.leave(3.0)
    assert span.until(4.0) == (5.0, 4.0)  # one block is still open
    span.leave(5.0)
    span.record(10.0)
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
    account = meter.as_dict()
    work = account["tiles"], account["bytes_decoded"], account["flops"]
    assert work == (400, 1200, 200)
    assert 0 < account["span.read.wall_s"] <= account["span.read.thread_s"]
    assert account["span.read.wall_s"] <= account["wall_s"]
    assert 0 < account["span.read.percent"] <= 100


def test_a_block_that_fails_is_closed_and_unknown_work_is_an_error():
    meter = Meter()
    with pytest.raises(OSError, match="bad tile"), meter.span("read"):
        raise OSError("bad tile")
    first = meter.as_dict()["span.read.wall_s"]
    assert meter.as_dict()["span.read.wall_s"] == first
    with pytest.raises(TypeError, match="no such work: slide"):
        meter.add(slide=1)


def test_processes_add_up_and_memory_is_the_peak():
    one = {"wall_s": 4.0, "peak_host_bytes": 100, "peak_device_bytes": None}
    two = {"wall_s": 6.0, "span.read.wall_s": 2.0, "peak_host_bytes": 300}
    expected = one | two | {"wall_s": 10.0, "peak_device_bytes": 8}
    assert total([one, two | {"peak_device_bytes": 8}]) == expected
    assert total([one])["peak_device_bytes"] is None
    block = bytearray(50_000_000)
    account = Meter(device_bytes=lambda: 7).as_dict()
    assert account["peak_host_bytes"] > len(block)
    assert account["peak_device_bytes"] == 7
    assert Meter().as_dict()["peak_device_bytes"] is None


def useful(account):
    return {name: account[name] for name in WORK if account[name]}


def repeated(account):
    return {name: v for name in WORK if (v := account[f"repeated_{name}"])}


def train(meter, checkpoints, until):
    """Ten steps of 3 FLOPs each, with a checkpoint every five; ends at a step."""
    step, done = checkpoints[-1] if checkpoints else (0, {})
    meter.begin("train", **done)
    while step < until:
        meter.record("train", steps=1, flops=3)
        step += 1
        if step % 5 == 0:
            checkpoints.append((step, meter.unit("train")))


def test_what_is_done_again_is_useful_once(tmp_path):
    """In slides and in training, wherever it was killed, and twice."""
    journal = tmp_path / "runs" / "abmil" / "cost.jsonl"  # in no folder yet
    meter, checkpoints = Meter(journal=journal), []
    for name in ("a", "b", "c"):
        meter.begin(f"slides/{name}")
        meter.record(f"slides/{name}", slides=1, tiles=10)
    train(meter, checkpoints, until=3)
    # It ends here, before its first checkpoint; of slide c the file was not whole.
    meter = Meter(journal=journal)
    meter.begin("slides/c")
    meter.record("slides/c", slides=1, tiles=10)
    train(meter, checkpoints, until=7)
    with journal.open("a") as file:
        file.write('{"process": "cut sh')
    meter = Meter(journal=journal)
    train(meter, checkpoints, until=10)
    train(meter, checkpoints, until=10)  # it is there already: nothing is repeated
    account = meter.as_dict()
    assert useful(account) == {"slides": 3, "tiles": 30, "steps": 10, "flops": 30}
    assert repeated(account) == {"slides": 1, "tiles": 10, "steps": 5, "flops": 15}
    again = Meter(journal=journal).as_dict()
    assert (useful(again), repeated(again)) == (useful(account), repeated(account))
    assert again["wall_s"] > 0


def test_a_later_process_continues_the_account(tmp_path):
    journal = tmp_path / "cost.jsonl"
    meter = Meter(device_bytes=lambda: 7, journal=journal)
    meter.begin("slide")
    with meter.span("encode"):
        pass
    meter.record("slide", tiles=30, steps=4)
    later = Meter(journal=journal)
    # A checkpoint that the journal does not know of is believed: the process was killed
    # after one was written and before the other.
    later.begin("slide", tiles=30, steps=5)
    later.add(tiles=5, device_s=1.5)
    account = later.as_dict()
    assert useful(account) == {"tiles": 35, "steps": 5}
    assert not repeated(account)
    assert (account["device_s"], account["peak_device_bytes"]) == (1.5, 7)
    assert account["span.encode.thread_s"] > 0
    assert 0 <= account["span.encode.percent"] <= 100
    json.dumps(account)
