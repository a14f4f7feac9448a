"""What a run cost: tiles, bytes, seconds, memory, and where the time went."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

COUNTERS = ("slides", "tiles", "bytes_decoded", "flops", "device_s", "wall_s")
PEAKS = ("peak_host_bytes", "peak_device_bytes")


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

    A resumed run continues the account: `Meter(earlier=json.loads(...))`.

    Args:
        device_bytes: () -> peak bytes held on the device so far, or None if unknown.
        earlier: `as_dict()` of the part of the run that came before.
    """

    def __init__(
        self,
        device_bytes: Callable[[], int | None] | None = None,
        earlier: Mapping[str, int | float | None] | None = None,
    ):
        self._device_bytes = device_bytes
        self._earlier = earlier
        self._start = time.perf_counter()
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(COUNTERS, 0)
        self._spans: dict[str, _Span] = {}

    def add(
        self,
        *,
        slides: int = 0,
        tiles: int = 0,
        bytes_decoded: int = 0,
        flops: int | float = 0,
        device_s: int | float = 0,
    ) -> None:
        """Adds to the account; bytes are those of decoded pixels."""
        with self._lock:
            self._counts["slides"] += slides
            self._counts["tiles"] += tiles
            self._counts["bytes_decoded"] += bytes_decoded
            self._counts["flops"] += flops
            self._counts["device_s"] += device_s

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Times a block as "read", "encode", "wait" or other; in any thread, nested."""
        with self._lock:
            span = self._spans.setdefault(name, _Span())
            start = time.perf_counter()
            span.enter(start)
        try:
            yield
        finally:
            with self._lock:
                span.leave(time.perf_counter())

    def as_dict(self) -> dict[str, int | float | None]:
        """The account so far, flat, fit for JSON; None is unknown.

        `slides`, `tiles`, `bytes_decoded`, `flops`, `device_s`, `wall_s`,
        `tiles_per_s`, `peak_host_bytes`, `peak_device_bytes`, and of each span
        `span.<name>.thread_s` (summed over threads), `span.<name>.wall_s` (while at
        least one thread was in it) and `span.<name>.percent` (of `wall_s`). Spans of
        one thread add up; what runs side by side overlaps.
        """
        device = None if self._device_bytes is None else self._device_bytes()
        with self._lock:
            now = time.perf_counter()
            account = self._counts | {"wall_s": now - self._start}
            for name, span in self._spans.items():
                thread_s, wall_s = span.until(now)
                account[f"span.{name}.thread_s"] = thread_s
                account[f"span.{name}.wall_s"] = wall_s
        account |= {"peak_host_bytes": peak_host_bytes(), "peak_device_bytes": device}
        parts = [account] if self._earlier is None else [self._earlier, account]
        return merge(*parts)


def merge(*parts: Mapping[str, int | float | None]) -> dict[str, int | float | None]:
    """One account of several parts of a run, one after another.

    Counts and seconds add up, peaks are the larger, rates are computed anew.

    Args:
        parts: as `Meter.as_dict` returns.
    """
    total = {name: sum(part[name] for part in parts) for name in COUNTERS}
    for name in PEAKS:
        known = [part[name] for part in parts if part[name] is not None]
        total[name] = max(known) if known else None
    wall_s = total["wall_s"]
    total["tiles_per_s"] = total["tiles"] / wall_s if wall_s else None
    spans = {name: None for part in parts for name in part if name.endswith("_s")}
    for name in spans:
        if name.startswith("span."):
            total[name] = sum(part[name] for part in parts if name in part)
            if name.endswith(".wall_s"):
                share = 100 * total[name] / wall_s if wall_s else None
                total[name.removesuffix("wall_s") + "percent"] = share
    return total


class _Span:
    """Time within one name: of all threads added up, and of their union."""

    def __init__(self):
        self.inside, self.changed, self.thread_s, self.wall_s = 0, 0.0, 0.0, 0.0

    def until(self, now: float) -> tuple[float, float]:
        """(thread_s, wall_s) at `now`, blocks still open included."""
        passed = now - self.changed if self.inside else 0.0
        return self.thread_s + self.inside * passed, self.wall_s + passed

    def enter(self, now: float) -> None:
        self.thread_s, self.wall_s = self.until(now)
        self.inside, self.changed = self.inside + 1, now

    def leave(self, now: float) -> None:
        self.thread_s, self.wall_s = self.until(now)
        self.inside, self.changed = self.inside - 1, now
