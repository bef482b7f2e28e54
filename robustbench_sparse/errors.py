"""The one exception a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Something the user can mend: one line, shown without a traceback, exit code 2."""


class Busy(UserError):
    """Another process is working on the same folder."""


def near(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` when a known word is close, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(c) for c in close)}?)" if close else ""


def check_runs_exist(only: Iterable[str], labels: Sequence[str]) -> None:
    """UserError for the first label of an option ``--only`` that is no run's."""
    for label in only:
        if label not in labels:
            raise UserError(
                f"--only {label}: no such run{near(label, labels)}; there are: {', '.join(labels)}"
            )


def one_line(text: object) -> str:
    """Any message on a single line."""
    return " ".join(str(text).split())
