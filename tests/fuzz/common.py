"""What the fuzzers share: one call under watch, and what may come of it."""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from robustbench_sparse.data.base import DataError
from robustbench_sparse.foundation.errors import UserError

LONGEST, SECONDS, BYTES = 500, 5, 1e9


def fault(call: Callable[[], object], pattern: str = "") -> str:
    """What is wrong with how a call ends: an answer, or a line for the user of ``LONGEST`` characters at most.

    Args:
        call: what is tried; it has ``SECONDS``.
        pattern: what the line must hold, such as the file's name: a regular expression.
    """
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        call()
    except (UserError, ValueError) as e:
        if not isinstance(e, UserError | DataError):
            return _told(e)
        text = str(UserError(e))  # as a command passes on what is wrong with data
        if "\n" in text or "\x1b" in text or len(text) > LONGEST:
            return f"not one short line: {text[:700]!r}"
        return "" if re.search(pattern, text) else f"{pattern} is not named: {text}"
    except BaseException as e:
        return _told(e)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


def _told(e: BaseException) -> str:
    place = traceback.extract_tb(e.__traceback__)[-1]
    return f"{type(e).__name__}: {str(e)[:200]} at {place.filename}:{place.lineno}"


def command(description: str | None, count: int, what: str, main: Callable[[int, int], list[str]]) -> None:
    """A fuzzer as a program: ``--count`` and ``--seed``, a line for every fault, exit code 1 where there is one."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    problems = main(given.count, given.seed)
    print("\n".join(problems))
    print(f"{given.count} {what}, {len(problems)} faults")
    sys.exit(1 if problems else 0)


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Let calls that take too long raise; faults go into the list, at the end that of ``BYTES`` more in use."""

    def hangs(*_: object) -> None:
        raise TimeoutError(f"no answer in {SECONDS} s")

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what ran in this process before
    held = _peak()
    before, found = signal.signal(signal.SIGALRM, hangs), list[str]()
    try:
        yield found
    finally:
        signal.signal(signal.SIGALRM, before)
    used = _peak() - held
    if used > BYTES:
        found.append(f"memory: {used / 1e9:.2f} GB")


def _peak() -> int:
    """The most bytes that this process has had in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
