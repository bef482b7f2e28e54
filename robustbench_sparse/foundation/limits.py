"""A limit on the time that a piece of Python may take, in whatever thread it runs and on whatever system."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 10  # so many times the limit may pass on the wall clock, whatever the thread got of the processor
PASSES = 100  # of a loop, in one of which Python looks whether there is something to raise
SOON_S = 0.01  # the shortest pause between two looks at the clock
AGAIN_S = 1.0  # between two reminders: code that catches everything may catch the first ones


class OutOfTime(BaseException):
    """Raised within work that has run out of its limit; no ``Exception``, so that handlers of errors let it pass."""


def limited(seconds: float, work: Callable[[], T]) -> T:
    """What the work returns, if it returns in time.

    The time is that which the thread spends on a processor, where the system tells: a machine that is busy with other
    things takes no limit away. On the wall clock, ``PATIENCE`` times as much may pass, not counting the time in which
    the process was stopped. A second thread waits for the limit and has Python raise ``OutOfTime`` in this one, between
    two steps of its code, and once a second from then on until the work has ended. A single call into compiled code is
    let finish. Under an interpreter other than CPython, which has no such means, work that took too long is only told
    so at its end.

    Args:
        seconds: the limit, > 0.
        work: what is done, in this thread.

    Raises:
        OutOfTime: the work had not ended in time. What it left half done is the caller's to put right.
    """
    watch = _Watch(seconds)
    try:
        try:
            out = work()
        finally:
            watch.end()
    except OutOfTime:
        watch.end()  # once more: it may have come just before the first
        raise
    if watch.raised:  # the work has caught it and gone on
        raise OutOfTime
    return out


class _Watch:
    """Reminds the thread that made it, from ``seconds`` on, until ``end``."""

    def __init__(self, seconds: float) -> None:
        self.raised = False
        self._seconds = seconds
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.get_ident()
        self._waited, self._used = 0.0, self._clock()
        self._api = getattr(ctypes, "pythonapi", None)
        threading.Thread(target=self._wait, name="time limit", daemon=True).start()

    def _clock(self) -> float:
        """Seconds that the watched thread has had of a processor; of the wall clock where the system does not tell."""
        of_thread = getattr(time, "pthread_getcpuclockid", None)
        return time.monotonic() if of_thread is None else time.clock_gettime(of_thread(self._thread))

    def _left(self) -> float:
        """Seconds until the limit, at the least."""
        return min(self._seconds - (self._clock() - self._used), PATIENCE * self._seconds - self._waited)

    def _wait(self) -> None:
        pause, looked = self._seconds, time.monotonic()
        while not self._ended.wait(pause):
            # Whoever was to wait so long and finds that far more has passed was stopped, with all of the process.
            now = time.monotonic()
            self._waited += min(now - looked, 2 * pause)
            looked = now
            with self._lock:
                if self._ended.is_set():
                    return
                if (left := self._left()) > 0:
                    pause = max(left, SOON_S)
                    continue
                self.raised = True
                self._send()
            pause = AGAIN_S

    def _send(self) -> None:
        """Have the exception raised in the watched thread."""
        if self._api is not None:
            self._api.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(OutOfTime))

    def end(self) -> None:
        """Stop; nothing is raised any more once this has returned."""
        while True:
            try:
                with self._lock:
                    self._ended.set()
                # What was sent and has not been raised yet is raised at the next turn of a loop. It must not be taken
                # back instead: CPython 3.11 would go on asking for it, and not get past any call that is profiled.
                for _ in range(PASSES if self.raised else 0):
                    pass
                return
            except OutOfTime:
                continue
