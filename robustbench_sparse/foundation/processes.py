"""Other processes of this package: what they can import, and what they said last."""

from __future__ import annotations

import os
import sys


def command(module: str, *arguments: str) -> list[str]:
    """Starts a module of the package with the Python that runs this process."""
    return [sys.executable, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's environment; what it can import, a user's plug-ins too, the other one can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def last_words(said: str, code: int) -> str:
    """The last line that a process wrote to its standard error, or else its exit code."""
    lines = said.strip().splitlines()
    return lines[-1] if lines else f"code {code}"
