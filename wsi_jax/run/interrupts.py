"""SIGTERM and Ctrl-C: what is done is kept, one line tells how to go on.

A signal raises `Stopped` wherever the command is, but within `deferred`, where it is
asked for: a training step is not to be cut in half. The exit code is that of
convention, 128 and the signal's number. A second Ctrl-C ends the process at once.
"""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The process was asked to end; the argument is the signal."""


@dataclasses.dataclass
class _Request:
    """The first signal that has come, and whether one waits to be asked for."""

    which: signal.Signals | None = None
    waits: bool = False


_request = _Request()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within the block, or the function it decorates, signals end the process in order.

    Raises:
        SystemExit: with the code of the signal that has come.
    """
    before = {one: signal.signal(one, _handle) for one in SIGNALS}
    try:
        yield
    except Stopped as stopped:
        (which,) = stopped.args
        message = f"stopped by {which.name}; what is done is kept"
        print(f"{message}: give the same command again to go on", file=sys.stderr)
        raise SystemExit(128 + which) from None
    finally:
        _request.which = None
        for one, handler in before.items():
            signal.signal(one, handler)


@contextlib.contextmanager
def deferred(
    agree: Callable[[bool], bool] = bool,
) -> Iterator[Callable[[], bool]]:
    """Within the block a signal waits; gives () -> whether one has come.

    Args:
        agree: whether a signal has come here -> whether one has in any process.

    Raises:
        Stopped: at the end of the block, if one has come.
    """
    _request.waits = True
    try:
        yield lambda: _asked(agree)
        asked = _asked(agree)  # a signal may have come since
    finally:
        _request.waits = False
    if asked:
        raise Stopped(_request.which)


def _asked(agree):
    """Whether to end, as all processes do where one was asked to."""
    asked = agree(_request.which is not None)  # one that comes meanwhile waits
    if asked and _request.which is None:
        _request.which = signal.SIGTERM
    return asked


def _handle(number, frame):
    del frame
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if _request.which is None:  # `timeout` and some schedulers send it twice
        _request.which = signal.Signals(number)
        if not _request.waits:
            raise Stopped(_request.which)
