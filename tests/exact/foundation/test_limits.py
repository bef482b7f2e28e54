"""A limit on time ends Python that loops, in any thread, and leaves alone what ends by itself."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from robustbench_sparse.foundation.limits import OutOfTime, limited


def forever() -> None:
    while True:
        pass


def test_what_ends_in_time_is_returned_or_raised_as_it_is() -> None:
    assert limited(600, lambda: 7) == 7
    with pytest.raises(KeyError, match="mine"):
        limited(600, lambda: dict[str, int]()["mine"])
    assert "time limit" not in {t.name for t in threading.enumerate() if t.is_alive() and not t.daemon}


def test_a_loop_ends() -> None:
    with pytest.raises(OutOfTime):
        limited(0.05, forever)


def test_so_does_one_that_catches_what_it_can() -> None:
    def deaf() -> str:
        for _ in range(2):
            with contextlib.suppress(BaseException):  # as foreign code does
                forever()
        return "unheard"

    with pytest.raises(OutOfTime):
        limited(0.05, deaf)


def test_in_another_thread_too_and_nothing_follows() -> None:
    seen: list[object] = []

    def work() -> None:
        try:
            limited(0.05, forever)
        except OutOfTime:
            seen.append("out of time")
        seen.append(limited(600, lambda: sum(range(100_000))))

    other = threading.Thread(target=work)
    other.start()
    other.join()
    assert seen == ["out of time", sum(range(100_000))]


def test_what_is_profiled_afterwards_still_runs() -> None:
    """A limit that was not reached leaves the interpreter with nothing to look for."""
    calls: list[str] = []
    with pytest.raises(OutOfTime):
        limited(0.05, forever)
    assert limited(600, lambda: 7) == 7
    sys.setprofile(lambda frame, event, arg: calls.append(event))
    try:
        counted = limited(600, lambda: sum(i for i in range(3)))
    finally:
        sys.setprofile(None)
    assert counted == 3
    assert calls.count("call") > 3


def test_no_ordinary_handler_takes_it_for_an_error() -> None:
    assert not issubclass(OutOfTime, Exception)


@pytest.mark.skipif(
    not hasattr(time, "pthread_getcpuclockid"), reason="the system does not tell a thread's time"
)
def test_waiting_for_others_takes_nothing_of_the_limit_until_patience_ends() -> None:
    def waits(seconds: float) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)
        return "done"

    assert limited(0.5, lambda: waits(0.8)) == "done"
    with pytest.raises(OutOfTime):
        limited(0.02, lambda: waits(600))


STOPPED = """
import time
from robustbench_sparse.foundation.limits import limited

def work():
    print("at work", flush=True)
    for _ in range(20):
        time.sleep(0.05)
    return "done"

print(limited(0.3, work), flush=True)  # patience is 3 s
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no signal that stops a process")
def test_a_process_that_is_stopped_and_goes_on_loses_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == "done\n"
    assert process.returncode == 0
