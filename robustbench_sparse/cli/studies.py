"""The command that works out a numerical study of the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from robustbench_sparse.cli.common import progress
from robustbench_sparse.foundation.errors import UserError


def study(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="The study; without one, a list of them.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", help="Folder of the two files.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated."),
    ] = None,
    figure: Annotated[str, typer.Option(metavar="KIND", help="Kind of the figure: png, svg or pdf.")] = "png",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Work out a numerical study of the papers: a CSV and a figure.

    Random walks that tend to turn back, CLIP on a regression in one dimension,
    Bregman iterations that denoise an image, one filter at several resolutions.
    Without a NAME it lists the studies with their settings. The files are
    DIR/NAME.csv and DIR/NAME.png; those that are there are replaced. What came
    out goes to stdout. docs/studies.md has measured numbers.

    \b
    Examples:
      robustbench-sparse study
      robustbench-sparse study serw --out studies
      robustbench-sparse study serw --out studies --set dimensions=[1] \\
          --set perturbations=\\[none,I] --set walkers=1000000
      robustbench-sparse study clip_1d --out studies --seed 1 --figure pdf
      robustbench-sparse study bregman_tv --out studies --set noise=0.2
      robustbench-sparse study bregman_tv --out studies --set image=photo.png
    """
    from robustbench_sparse.config.load import apply_set
    from robustbench_sparse.studies.making import NO_FIGURE, built, can_draw, lines_of, make

    if name is None:
        for line in lines_of():
            typer.echo(line)
        return
    settings: dict[str, Any] = {"seed": seed}
    for change in changes or []:
        settings = apply_set(settings, change)
    built(name, settings)  # an unknown name is said before a missing folder
    if out is None:
        raise UserError(f"study {name}: --out: expected a folder")
    if not can_draw():
        typer.echo(NO_FIGURE, err=True)  # before the work, which may be long
    with progress(quiet) as show:
        result, files = make(name, out, settings, figure, show)
    for line in result.lines():
        typer.echo(line)
    typer.echo(f"\nwritten: {', '.join(map(str, files))}", err=True)
