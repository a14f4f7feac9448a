"""What a run cost: work, seconds, memory, where the time went; kept through a kill."""

import contextlib
import json
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from wsi_jax.files import AnyPath, Lines

# What is useful once, however often it is done.
WORK = ("slides", "tiles", "bytes_decoded", "steps", "flops", "uncounted_calls")
PEAKS = ("peak_host_bytes", "peak_device_bytes")
ALONE = ""  # the unit of work that no unit is named for


def peak_host_bytes() -> int | None:
    """The most memory this process has held so far; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


class Meter:
    """Counts what the driver spends, from its construction on; safe across threads.

    ```
    meter = Meter(device_bytes=lambda: device.memory_stats()["peak_bytes_in_use"])
    with meter.span("read"):
        tiles = slide.read(...)
    meter.add(tiles=len(tiles), bytes_decoded=tiles.nbytes)
    log(meter.as_dict())
    ```

    Work of a run that may be killed is entered by unit: a slide, a stage of training.
    With a journal, `Lines` of entries, one JSON a line, each entry is on disk at once,
    and a later process goes on with the account. A unit that is done again is useful
    once; the work that was entered before and had to be done again is counted as
    repeated. `device_bytes` gives the peak bytes held on the device so far, or None.
    """

    def __init__(
        self,
        device_bytes: Callable[[], int | None] | None = None,
        journal: AnyPath | None = None,
    ):
        self._device_bytes, self._journal = device_bytes, None
        self._start, self._process = time.perf_counter(), uuid.uuid4().hex[:12]
        self._lock = threading.Lock()
        self._units: dict[str, Counter] = {}
        self._repeated, self._device_s = Counter(), 0.0
        self._spans: dict[str, _Span] = {}
        self._earlier: dict[str, dict] = {}  # seconds and peaks, by process
        if journal is not None:
            self._journal = Lines(journal)
            if journal.is_file():
                self._replay(journal.read_bytes())

    def add(self, *, device_s: int | float = 0, **work: int | float) -> None:
        """Adds work (of `WORK`) that belongs to no unit, and seconds of the device."""
        with self._lock:
            self._device_s += device_s
            self._units.setdefault(ALONE, Counter()).update(_nonzero(work))

    def begin(self, unit: str, **done: int | float) -> None:
        """Work on a unit begins; `done` of it, as a checkpoint remembers, is there.

        What is not is done again. A unit has the same name in every process.
        """
        done = Counter(_nonzero(done))
        with self._lock:
            before = self._units.setdefault(unit, Counter())
            if before == done:
                return
            again = before - done  # of the positive differences
            self._units[unit] = done
            self._repeated.update(again)
            self._write(unit, again)

    def record(self, unit: str, **work: int | float) -> None:
        """Adds work to a unit that has begun, and writes it down."""
        with self._lock:
            self._units[unit].update(_nonzero(work))
            self._write(unit)

    def unit(self, unit: str) -> dict[str, int | float]:
        """The work on a unit so far, for `begin` of a later process."""
        with self._lock:
            return dict(self._units.get(unit, {}))

    def save(self) -> None:
        """Writes down the seconds so far, and the work that belongs to no unit."""
        with self._lock:
            self._units.setdefault(ALONE, Counter())
            self._write(ALONE)
            if self._journal is not None:
                self._journal.flush()

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Times a block as "read", "encode", "wait" or other; in any thread, nested."""
        with self._lock:
            span = self._spans.setdefault(name, _Span())
            start = time.perf_counter()
            span.record(start)
        try:
            yield
        finally:
            with self._lock:
                span.leave(time.perf_counter())

    def as_dict(self) -> dict[str, int | float | None]:
        """The account so far, of all processes, flat, fit for JSON; None is unknown.

        Work that was useful: `slides`, `tiles`, `bytes_decoded`, `steps` of training,
        `flops` of matmuls and convolutions, and `uncounted_calls` of programs whose
        arithmetic is not in it, as the turns of their loops are only known when they
        run. Work that was entered and had to be done again: the same, named
        `repeated_<name>`.

        `device_s`, `wall_s`, `tiles_per_s`, `peak_host_bytes`, `peak_device_bytes`, and
        of each span `span.<name>.thread_s` (summed over threads), `span.<name>.wall_s`
        (while at least one thread was in it) and `span.<name>.percent` (of `wall_s`).
        Spans of one thread add up; what runs side by side overlaps.
        """
        with self._lock:
            work = sum(self._units.values(), Counter())
            account = {name: work[name] for name in WORK}
            account |= {f"repeated_{name}": self._repeated[name] for name in WORK}
            spent = total([*self._earlier.values(), self._spent()])
        return account | _with_rates(spent, account["tiles"])

    def _spent(self) -> dict[str, int | float | None]:
        """Seconds and peaks of this process."""
        now = time.perf_counter()
        spent = {"device_s": self._device_s, "wall_s": now - self._start}
        for name, span in self._spans.items():
            thread_s, wall_s = span.until(now)
            spent[f"span.{name}.thread_s"] = thread_s
            spent[f"span.{name}.wall_s"] = wall_s
        device = None if self._device_bytes is None else self._device_bytes()
        return spent | dict(zip(PEAKS, (peak_host_bytes(), device), strict=True))

    def _write(self, unit: str, again: Mapping[str, int | float] | None = None) -> None:
        """Appends an entry: the whole of a unit, so that the last one holds."""
        if self._journal is None:
            return
        entry = {"process": self._process, "unit": unit, "work": self._units[unit]}
        entry |= {"repeated": again or {}, "spent": self._spent()}
        self._journal.add(json.dumps(entry))

    def _replay(self, journal: bytes) -> None:
        """Takes over the account of earlier processes; passes over what is damaged."""
        for line in journal.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                work, spent = Counter(entry["work"]), dict(entry["spent"])
                self._units[entry["unit"]] = work
                self._repeated.update(entry["repeated"])
                self._earlier[entry["process"]] = spent


def total(
    parts: list[Mapping[str, int | float | None]],
) -> dict[str, int | float | None]:
    """Seconds and peaks of several processes: seconds add up, peaks are the larger."""
    names = {name: None for part in parts for name in part}
    sums = {}
    for name in names:
        values = [part[name] for part in parts if part.get(name) is not None]
        sums[name] = max(values, default=None) if name in PEAKS else sum(values)
    return sums


def _with_rates(spent, tiles):
    wall_s = spent["wall_s"]
    rates = {"tiles_per_s": tiles / wall_s if wall_s else None}
    for name, seconds in spent.items():
        if name.startswith("span.") and name.endswith(".wall_s"):
            share = 100 * seconds / wall_s if wall_s else None
            rates[name.removesuffix("wall_s") + "percent"] = share
    return spent | rates


def _nonzero(work: Mapping[str, int | float]) -> dict[str, int | float]:
    """The work that is more than nothing."""
    if unknown := sorted(set(work) - set(WORK)):
        raise TypeError(f"no such work: {', '.join(unknown)}")
    return {name: count for name, count in work.items() if count}


class _Span:
    """Time within one name: of all threads added up, and of their union."""

    def __init__(self):
        self.inside, self.changed, self.thread_s, self.wall_s = 0, 0.0, 0.0, 0.0

    def until(self, now: float) -> tuple[float, float]:
        """(thread_s, wall_s) at `now`, blocks still open included."""
        passed = now - self.changed if self.inside else 0.0
        return self.thread_s + self.inside * passed, self.wall_s + passed

    def record(self, now: float) -> None:
        self.thread_s, self.wall_s = self.until(now)
        self.inside, self.changed = self.inside + 1, now

    def leave(self, now: float) -> None:
        self.thread_s, self.wall_s = self.until(now)
        self.inside, self.changed = self.inside - 1, now
