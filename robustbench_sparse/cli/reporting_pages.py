"""The commands that make pages of results, and serve them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_sparse.cli.common import DataRoot, TrustPlugins, located, modules_of, progress

if TYPE_CHECKING:
    from robustbench_sparse.pages.writing import Wishes

Results = Annotated[
    list[str],
    typer.Argument(
        metavar="RESULTS...",
        help="results/<benchmark>, results, a leaderboard.csv, where they were pushed, or zoo:.",
        show_default=False,
    ),
]
Title = Annotated[str | None, typer.Option(help="Stands above the pages.", show_default=False)]
Configs = Annotated[
    Path,
    typer.Option(metavar="DIR", help="Benchmarks' files: a table alone does not say its threat, they do."),
]


def report(
    results: Results,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The pages go here.")] = Path(
        "report"
    ),
    title: Title = None,
    configs: Configs = Path("configs"),
    gallery: Annotated[int, typer.Option(min=0, max=200, help="Images on a run's page at most.")] = 8,
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure the time of one image on this machine, too.")
    ] = False,
    no_runs: Annotated[bool, typer.Option("--no-runs", help="No pages of single runs.")] = False,
    no_charts: Annotated[bool, typer.Option("--no-charts", help="No charts.")] = False,
    data_root: DataRoot = None,
    trust_plugins: TrustPlugins = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Make a folder of pages: the leaderboard, a page a run, charts, downloads. It opens from disk.

    Rows can be sorted, filtered and linked; a verdict opens its evidence. Nothing
    on the pages is fetched from elsewhere, and they can be read without a script.
    Nothing is trained or attacked. Of several sources with the same row, the first
    counts. Needs the extra "report".

    \b
    Examples:
      robustbench-sparse report results/quickstart -o report
      robustbench-sparse report results -o report --title "Our networks"
      robustbench-sparse report results/reference zoo: -o docs/sample
      robustbench-sparse report results/mine --latency --gallery 24 -o report
    """

    from robustbench_sparse.pages.writing import INDEX, write_report

    wishes = _wishes(title, configs, data_root, trust_plugins, gallery, not no_runs, not no_charts, latency)
    places = [_place(text) for text in results]
    with progress(quiet) as show:
        rows = write_report(places, out, wishes, show)
    typer.echo(f"written: {out / INDEX} ({rows} row{'s' * (rows != 1)})", err=True)


def serve(
    results: Results,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of this machine; 0 for any that is free.")
    ] = 8765,
    title: Title = None,
    configs: Configs = Path("configs"),
    gallery: Annotated[int, typer.Option(min=0, max=200, help="Images on a run's page at most.")] = 8,
    no_charts: Annotated[bool, typer.Option("--no-charts", help="No charts.")] = False,
    data_root: DataRoot = None,
    trust_plugins: TrustPlugins = None,
) -> None:
    """Show the same pages of a benchmark that is still running, renewed as its rows come in.

    On this machine alone (127.0.0.1), read-only; nothing is written to the
    results. The leaderboard follows within two seconds of a new row; charts and
    pages of runs once nothing has changed for some seconds. Ctrl-C ends it.

    \b
    Examples:
      robustbench-sparse serve results/quickstart
      robustbench-sparse serve results --port 0
    """
    from robustbench_sparse.pages.serving import serve as keep_serving

    wishes = _wishes(title, configs, data_root, trust_plugins, gallery, True, not no_charts, False)
    keep_serving(
        [_place(text) for text in results],
        wishes,
        port,
        lambda address: typer.echo(f"serving {address} (Ctrl-C ends it)", err=True),
        lambda problem: typer.echo(f"waiting: {problem}", err=True),
    )


def _place(text: str) -> Path | str:
    """A source: the zoo by its name, else a folder, or the copy of what was pushed."""
    return text if text == "zoo:" else located(text)


def _wishes(
    title: str | None,
    configs: Path,
    data_root: Path | None,
    trust_plugins: str | None,
    gallery: int,
    runs: bool,
    charts: bool,
    latency: bool,
) -> Wishes:
    from robustbench_sparse.certificate.checks import CHECKS
    from robustbench_sparse.config import plugins
    from robustbench_sparse.pages.writing import Wishes

    plugins.trust(modules_of(trust_plugins))
    return Wishes(
        **({} if title is None else {"title": title}),  # type: ignore[arg-type]
        # Pages know nothing of checks: what each of them asks is told to them.
        known={check.id: (check.title, check.meaning, check.advice) for check in CHECKS.values()},
        configs=configs if configs.is_dir() else None,
        data_root=data_root,
        gallery=gallery,
        runs=runs,
        charts=charts,
        latency=latency,
    )
