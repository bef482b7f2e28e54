"""The command line, called within this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from robustbench_sparse.cli import main as cli


def call(*arguments: object) -> Result:
    """A command with its arguments, each as text."""
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def one_line(result: Result) -> str:
    """The message of a refused command: exit code 2, one line on stderr, nothing on stdout, no traceback."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip()
