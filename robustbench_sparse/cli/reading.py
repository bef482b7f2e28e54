"""The commands that read what runs left: nothing is trained or attacked."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from robustbench_sparse.cli.common import check_format, located, radius
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.texts import printable_lines, to_csv

TableOrCsv = Annotated[str, typer.Option("--format", help="table or csv.")]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw it, too: .png, .pdf or .svg.", show_default=False)
]


def check(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="results/<benchmark>, a CSV, or where it was pushed.", show_default=False
        ),
    ],
    against: Annotated[
        Path,
        typer.Option(
            metavar="CSV", help="The reference; or the name of one that comes along.", show_default=False
        ),
    ],
    seeds: Annotated[
        bool, typer.Option("--seeds", help="Trained with other seeds: allow for the spread over the seeds.")
    ] = False,
    spread: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Spread over machines and seeds; by default spread.csv beside the reference.",
            show_default=False,
        ),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a JUnit report, too.", show_default=False)
    ] = None,
) -> None:
    """Compare a leaderboard with a reference CSV; a table of differences if it fell off.

    A rate differs when the joint 95 % interval of both measurements excludes 0,
    a sparsity when it is off by more than 0.1 points; a row, a column or a value
    that is gone differs, too. Where spread.csv stands beside the reference, the
    intervals are wider by what retrainings on other machines differed by.
    Exit code 1: something fell; 2: nothing fell, but something could not be
    compared; what improved is shown, and is no error. Where GITHUB_STEP_SUMMARY
    names a file, a summary in Markdown is appended to it.

    \b
    Examples:
      robustbench-sparse check results/quickstart --against results/quickstart.csv
      robustbench-sparse check results/quickstart --against quickstart
      robustbench-sparse check results/quickstart --against quickstart --junit check.xml
      robustbench-sparse check results/quickstart@seeds=7 --against quickstart --seeds
    """
    from robustbench_sparse.foundation import shipped
    from robustbench_sparse.reporting import junit as reports
    from robustbench_sparse.reporting import reference
    from robustbench_sparse.reporting.spread import beside
    from robustbench_sparse.runs.names import LEADERBOARD

    csv = shipped.reference(against, LEADERBOARD)
    allowed = beside(csv, seeds=seeds, path=spread)
    differences = reference.check(located(folder), csv, spread=allowed)
    rows, title = reference.rows_of(csv, across_seeds=seeds), f"{folder} against {against}"
    if allowed is not None and allowed.loose():
        typer.echo(f"hardly held, as {allowed.of} may move them: {', '.join(allowed.loose())}", err=True)
    if junit is not None:
        reports.write(junit, title, rows, differences)
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a", encoding="utf-8") as file:
            file.write(reports.summary(title, rows, differences))
    if differences:
        typer.echo(reference.text_of(differences))
    kinds = {d.kind for d in differences}
    if "fell" in kinds:
        raise typer.Exit(1)
    if "broken" in kinds:
        raise typer.Exit(2)
    typer.echo(f"{folder}: everything that {against} states still holds")


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="A run's folder.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="Another one's.", show_default=False)],
    attack: Annotated[
        str | None, typer.Option(metavar="LABEL", help="This column only; clean and worst are columns, too.")
    ] = None,
    form: TableOrCsv = "table",
    columns: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="These columns, as in difference,p.", show_default=False),
    ] = None,
) -> None:
    """Compare two runs on the same images: is the difference more than noise, and which images flip?

    A dense network and its pruned self may have equal rates and still fail on
    different images: the flips show it. --columns takes the names of the CSV.

    \b
    Examples:
      robustbench-sparse compare results/quickstart/runs/A results/quickstart/runs/B
      robustbench-sparse compare RUN_A RUN_B --attack worst
      robustbench-sparse compare RUN_A s3://bucket/tables/quickstart/runs/B
      robustbench-sparse compare RUN_A RUN_B --format csv > flips.csv
      robustbench-sparse compare RUN_A RUN_B --columns difference,low,high,p
    """
    check_format(form, ("table", "csv"))
    from robustbench_sparse.reporting import comparison
    from robustbench_sparse.reporting.choosing import check_columns, names_of

    names = names_of(columns)
    check_columns(names, comparison.COLUMNS)
    table = comparison.compare_runs(located(first), located(second), attack)
    if form == "csv":
        sys.stdout.write(to_csv(table[["attack", *(n for n in names if n != "attack")]] if names else table))
        if table.attrs["note"]:
            typer.echo(table.attrs["note"], err=True)
    else:
        sys.stdout.write(comparison.text_of(table, first, second, names))


def explain(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's folder, or where it was pushed.", show_default=False)
    ],
    failed: Annotated[bool, typer.Option("--failed", help="Only the checks that failed.")] = False,
) -> None:
    """Say why a row's numbers can or cannot be believed: every check of its certificate.

    For each: what was done, what was found, the rule, what a failure means and
    what to do next. Certificates are made by run and evaluate: see --certificate.

    \b
    Examples:
      robustbench-sparse run configs/quickstart.yaml --certificate quick
      robustbench-sparse explain results/quickstart/runs/pgd_at-s0-1a2b3c4d
      robustbench-sparse explain RUN --failed
    """
    from robustbench_sparse.reporting.explain import explain as why
    from robustbench_sparse.runs.manifest import check_run_folder, read_manifest

    folder = located(run)
    check_run_folder(folder)
    text = why(folder, read_manifest(folder.absolute().parent.parent), failed_only=failed)
    sys.stdout.write(printable_lines(text))


def curve(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's folder, or where it was pushed.", show_default=False)
    ],
    attack: Annotated[
        str, typer.Option(metavar="LABEL", help="A minimum-norm attack, such as cw.", show_default=False)
    ],
    eps: Annotated[
        str | None, typer.Option(help="Radii, as in 0,0.1,8/255; by default 21 of them.", show_default=False)
    ] = None,
    form: TableOrCsv = "table",
    plot: Plot = None,
) -> None:
    """Accuracy at every radius, from one outcome of an attack that seeks the smallest perturbation.

    Nothing is attacked again. Attacks that stay inside a ball say nothing
    beyond it and have no curve. The plot needs matplotlib (the extra "plot").

    \b
    Examples:
      robustbench-sparse curve results/quickstart/runs/A --attack cw
      robustbench-sparse curve RUN --attack cw --eps 0,0.1,0.2 --format csv
      robustbench-sparse curve RUN --attack fab --plot curve.png
    """
    check_format(form, ("table", "csv"))
    radii = None if eps is None else [radius(part.strip()) for part in eps.split(",")]
    from robustbench_sparse.reporting import curve as curves

    table = curves.curve(located(run), attack, radii)
    if plot is not None:
        curves.plot(table, plot)
    if form == "csv":
        sys.stdout.write(to_csv(table))
    else:
        sys.stdout.write(printable_lines(curves.text_of(table)))
    if plot is not None:
        typer.echo(f"\nwritten: {plot}", err=True)


def history(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="results/<benchmark>, or where it was pushed.", show_default=False
        ),
    ],
    only: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="This run only; may be repeated.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Every layer by itself; CSV only.")] = False,
    seeds: Annotated[bool, typer.Option("--seeds", help="Every seed by itself; CSV only.")] = False,
    form: TableOrCsv = "table",
    plot: Plot = None,
) -> None:
    """How trainings went: accuracy, l1 norm and non-zero weights after every epoch.

    Means and deviations over the seeds of every run. The plot needs matplotlib
    (the extra "plot").

    \b
    Examples:
      robustbench-sparse history results/mnist_bregman
      robustbench-sparse history results/mnist_bregman --only linbreg --plot curves.png
      robustbench-sparse history results/mnist_bregman --layers --format csv > layers.csv
    """
    check_format(form, ("table", "csv"))
    if (layers or seeds) and form != "csv":
        raise UserError(f"--{'layers' if layers else 'seeds'}: expected --format csv with it, got {form}")
    from robustbench_sparse.reporting import history as histories

    home = located(folder)
    found = histories.collect(home, only or (), layers=layers)
    means = histories.over_seeds(found)
    if plot is not None:
        if layers:
            raise UserError("--plot: expected no --layers with it")
        histories.plot(means, plot, home.absolute().name)
    if form == "csv":
        table = found if seeds else means
        sys.stdout.write(to_csv(table, "%.8g"))
    else:
        sys.stdout.write(histories.text_of(means))
    if plot is not None:
        typer.echo(f"\nwritten: {plot}", err=True)
