"""The command that pushes finished runs to a place elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustbench_sparse.cli.common import progress


def push(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="results/<benchmark>, or results.", show_default=False)
    ],
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="s3://…, gs://… or file:///….", show_default=False)
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Another config's table takes the place of the one there.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read what is there, and send again what was changed.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Push the finished runs of a benchmark to PLACE/<benchmark>, from where tables can be read.

    Runs at work are left out. Every file goes with its hash; a manifest comes
    last, so that nothing counts before all of it is there. What is there already
    is not sent again: after an interrupt the same command goes on. leaderboard,
    check, compare, explain, curve and history read from such a place, and compare
    every hash. Needs the extra "remote"; for s3 and gs the extras of these names.

    \b
    Examples:
      robustbench-sparse push results/quickstart s3://bucket/tables
      robustbench-sparse push results file:///mnt/archive
      robustbench-sparse leaderboard s3://bucket/tables/quickstart
      robustbench-sparse explain s3://bucket/tables/quickstart/runs/pgd_at-s0-1a2b3c4d
    """
    from robustbench_sparse.remote.push import push as send

    with progress(quiet) as show:
        done = send(results, place, show, replace=replace, verify=verify)
    for sent in done:
        left = f"; left out: {sent.left} that are not finished" if sent.left else ""
        typer.echo(
            f"{sent.url}: {sent.runs} runs; sent: {sent.files} files, {sent.bytes} bytes; "
            f"there already: {sent.there}{left}"
        )
