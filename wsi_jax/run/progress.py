"""Progress: a bar with time left in a terminal, a line now and then in a log."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

EVERY_S = 15


@contextlib.contextmanager
def progress(what: str, total: int, first: str = "") -> Iterator[Callable]:
    """Shows how much of a job is done; gives `advance(n=1, note="", before=False)`.

    With `before` an earlier run did these: they count, but not for the pace.

    Args:
        what: name of the job.
        total: its size, in what `advance` counts.
        first: what delays the first of them, as "compiling"; shown until it is done,
            and not counted in the pace.
    """
    console = rich.console.Console(highlight=False)
    pace = Pace(total, first)
    display = _bar if console.is_terminal else _lines
    with display(what, pace, console) as show:

        def advance(n: int = 1, note: str = "", before: bool = False) -> None:
            pace.add(n, note, before)
            show()

        yield advance


@contextlib.contextmanager
def silent(what: str, total: int, first: str = "") -> Iterator[Callable]:
    """As `progress`, and shows nothing."""
    del what, total, first
    yield lambda *args, **kwargs: None


@contextlib.contextmanager
def _bar(what, pace, console):
    columns = (
        "{task.description:>21}",
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        "{task.fields[status]}",
    )
    with rich.progress.Progress(*columns, console=console) as bars:
        status = lambda: ", ".join(filter(None, [*pace.speed(), pace.note]))
        bar = bars.add_task(what, total=pace.total, status=status())
        yield lambda: bars.update(bar, completed=pace.done, status=status())


@contextlib.contextmanager
def _lines(what, pace, console):
    del console
    printed, done = time.monotonic(), -1

    def line(*parts):
        print(f"{what}: {', '.join(filter(None, parts))}", flush=True)

    if pace.note:
        line(pace.note)

    def show():
        nonlocal printed, done
        if time.monotonic() - printed > EVERY_S:
            printed, done = time.monotonic(), pace.done
            line(str(pace), pace.note)

    yield show
    if pace.total and done < pace.total:
        line(str(pace), pace.first_took())


class Pace:
    """Counts what is done, and tells the time left from it.

    Args:
        total: size of the job.
        first: what delays the first of it.
    """

    def __init__(self, total: int, first: str = ""):
        self.total, self.done, self.first = total, 0, first
        self.note = f"{first} ..." if first else ""
        self._before, self._first_n, self._delay_s = 0, 0, 0.0
        self._began, self._lock = time.monotonic(), threading.Lock()

    def add(self, n: int, note: str = "", before: bool = False) -> None:
        """Counts n more; `note` replaces the last one."""
        with self._lock:  # threads that read slides call this
            self.done += n
            if before:
                self._before += n
                return
            self.note = note
            if self.first and n and not self._first_n:
                self._first_n, self._delay_s = n, self._passed_s()

    def rate(self) -> float:
        """How many a second; without the first and its delay, once there are more."""
        done, passed = self.done - self._before, self._passed_s()
        if done > self._first_n:
            done, passed = done - self._first_n, passed - self._delay_s
        return done / max(passed, 1e-9)

    def speed(self) -> list[str]:
        """The rate, and the time left where it is known."""
        rate, left = self.rate(), self.total - self.done
        if self.done - self._before <= self._first_n:
            left = 0  # all the time so far was that of the delay
        ahead = [f"{left / rate:.0f} s left"] if left > 0 and rate > 0 else []
        return [f"{rate:.1f}/s", *ahead]

    def first_took(self) -> str:
        """How long the first one was delayed; "" for less than a second."""
        long = self._delay_s >= 1
        return f"{self._delay_s:.0f} s of it {self.first}" if long else ""

    def __str__(self) -> str:
        passed, (rate, *left) = self._passed_s(), self.speed()
        return ", ".join(
            [f"{self.done} of {self.total}", rate, f"{passed:.0f} s", *left]
        )

    def _passed_s(self) -> float:
        return time.monotonic() - self._began
