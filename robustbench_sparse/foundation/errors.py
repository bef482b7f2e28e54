"""The one exception a user is meant to read."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from robustbench_sparse.foundation.texts import printable

LONGEST = 500  # characters of a message


class UserError(Exception):
    """Something the user can mend: one line of at most ``LONGEST`` characters, without a traceback, exit code 2."""

    def __init__(self, text: object) -> None:
        super().__init__(cut(one_line(text), LONGEST))


class Busy(UserError):
    """Another process is working on the same folder."""


class MissingExtra(UserError):
    """A package of an extra is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'robustbench_sparse[{extra}]'")


def check_installed(packages: Iterable[str], extra: str) -> None:
    """Raise MissingExtra for the first of an extra's packages that cannot be imported."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            raise MissingExtra(name, extra) from None


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Code of the user's at work: ending the program is an error as any other; only an interrupt may.

    Raises:
        UserError: ``what``, and what was raised, for anything that is no ordinary exception.
    """
    try:
        yield
    except (KeyboardInterrupt, Exception):
        raise
    except BaseException as e:
        raise UserError(f"{what}: {type(e).__name__}: {one_line(e)}") from None


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
    """Any message on a single line, without what steers a terminal."""
    return " ".join(printable(text).split())


def cut(text: str, longest: int) -> str:
    """A text of at most so many characters: its middle is what is left out."""
    if len(text) <= longest:
        return text
    tail = longest // 4
    return f"{text[: longest - tail - 5]} ... {text[-tail:]}"


def shown(value: object, longest: int = 120) -> str:
    """A value as it is echoed in a message: its ``repr`` on one line, cut."""
    return cut(one_line(repr(value)), longest)
