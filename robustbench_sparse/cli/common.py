"""What the commands share: options, and the one line that an error is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer

# Nothing heavy may be imported up here: `--help` has to answer at once.
from robustbench_sparse.foundation.errors import UserError, near, one_line

if TYPE_CHECKING:
    from robustbench_sparse.foundation.progress import Progress

P = ParamSpec("P")
R = TypeVar("R")

FORMATS = ("table", "csv", "markdown", "latex")

DataRoot = Annotated[
    Path | None, typer.Option(envvar="RBS_DATA", help="Folder of the data sets.", show_default=False)
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one config key; may be repeated."),
]


TrustPlugins = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE,...", help="Modules whose code a stored file may name and run.", show_default=False
    ),
]


def modules_of(text: str | None) -> list[str]:
    """The modules that an option names."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def guarded(verb: Callable[P, R]) -> Callable[P, R]:
    """Errors for the user become one line and exit code 2; an interrupt says how to go on.

    A full disk, a lack of memory, and code of the user's that calls ``sys.exit`` are such errors, too.
    """

    @functools.wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return verb(*args, **kwargs)
        except UserError as e:
            typer.echo(f"error: {one_line(e)}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command goes on from here", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of a pipe has enough
            raise
        except (OSError, MemoryError, SystemExit) as e:
            text = f"{type(e).__name__}: {one_line(e)[:400]}"
            typer.echo(f"error: {text}", err=True)
            raise typer.Exit(2) from None

    return run


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Where a command's progress goes: bars on the error stream, or nowhere."""
    from robustbench_sparse.foundation.progress import RichProgress, Silent

    if quiet:
        yield Silent()
        return
    from rich.console import Console

    with RichProgress(Console(stderr=True)) as show:
        yield show


def located(text: str) -> Path:
    """A folder, or the verified copy of what was pushed to the place elsewhere that a URL names."""
    if "://" not in text:
        return Path(text)
    from robustbench_sparse.remote.reading import local

    return local(text)


def check_format(form: str, known: Sequence[str] = FORMATS) -> None:
    """UserError for an unknown format of tables."""
    if form not in known:
        raise UserError(f"--format: expected {', '.join(known)}, got {form!r}{near(form, known)}")


def radius(text: str) -> float:
    """A radius in the terms a config takes, as 0.1 or 8/255; UserError for anything else."""
    from robustbench_sparse.config.yaml_reader import scalar

    value = scalar(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise UserError(f"--eps: expected a number >= 0 such as 8/255, got {text!r}")
    return float(value)
