"""Progress: a bar with time left in a terminal, a line now and then in a log."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

EVERY_S = 15


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable]:
    """Shows how much of a job is done; gives `advance(n=1, note="", before=False)`.

    With `before` an earlier run did these: they count, but not for the pace.
    """
    console = rich.console.Console(highlight=False)
    if console.is_terminal:
        with rich.progress.Progress(
            "{task.description:>18}",
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            "{task.fields[rate]}",
            rich.progress.TimeRemainingColumn(),
            "{task.fields[note]}",
            console=console,
        ) as bars:
            bar = bars.add_task(what, total=total, note="", rate="")
            pace = _Pace(total)

            def advance(n: int = 1, note: str = "", before: bool = False) -> None:
                pace.add(n, before)
                bars.update(bar, advance=n, note=note, rate=f"{pace.rate():.1f}/s")

            yield advance
        return

    pace, printed = _Pace(total), time.monotonic()

    def advance(n: int = 1, note: str = "", before: bool = False) -> None:
        nonlocal printed
        pace.add(n, before)
        if time.monotonic() - printed > EVERY_S:
            printed = time.monotonic()
            print(f"{what}: {pace}{', ' * bool(note)}{note}", flush=True)

    yield advance
    print(f"{what}: {pace}", flush=True)


@contextlib.contextmanager
def silent(what: str, total: int) -> Iterator[Callable]:
    """As `progress`, and shows nothing."""
    del what, total
    yield lambda *args, **kwargs: None


class _Pace:
    def __init__(self, total: int):
        self.total, self.done, self.before = total, 0, 0
        self.began, self.lock = time.monotonic(), threading.Lock()

    def add(self, n: int, before: bool) -> None:
        with self.lock:  # threads that read slides call this
            self.done += n
            self.before += n * before

    def rate(self) -> float:
        passed = time.monotonic() - self.began
        return (self.done - self.before) / max(passed, 1e-9)

    def __str__(self) -> str:
        passed = time.monotonic() - self.began
        rate, left = self.rate(), self.total - self.done
        ahead = f", {left / rate:.0f} s left" if left > 0 and rate > 0 else ""
        return f"{self.done} of {self.total}, {rate:.1f}/s, {passed:.0f} s{ahead}"
