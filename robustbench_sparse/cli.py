"""The command line: tables go to stdout, progress and errors to stderr.

Exit codes: 0 done; 1 done, but a row that was worked on has a gap, or the reference does not hold any more;
2 something the user can mend, and one line says what; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

# Nothing heavy may be imported up here: `--help` has to answer at once.
from robustbench_sparse import cli_sparsity
from robustbench_sparse.cli_common import Changes, DataRoot, check_format, guarded
from robustbench_sparse.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from robustbench_sparse.progress import Show

PROGRAM = "robustbench-sparse"
app = typer.Typer(
    name=PROGRAM,
    help="How accurate, how robust and how sparse is an image classifier, and can the number be believed?",
    epilog=f"Start with: {PROGRAM} run configs/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[
    str | None,
    typer.Option(
        help="auto, fp32 or bf16, for training and attacks; verdicts are always float32.", show_default=False
    ),
]
Compile = Annotated[
    str | None, typer.Option(help="auto, on or off: torch.compile for both.", show_default=False)
]
Certificate = Annotated[
    str | None,
    typer.Option(help="off, quick or full: examine whether the numbers can be believed.", show_default=False),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Judge only so many test images.")]
Format = Annotated[str, typer.Option("--format", help="table, csv, markdown or latex.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def main() -> None:
    """Entry point of the command."""
    # Threads that wait for each other by spinning slow a run down twentyfold as soon as another program wants a
    # core. Read when torch is imported, so it is set before; the user's own setting wins.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _keep_memory()
    app()


def _keep_memory() -> None:
    """Let glibc keep freed memory instead of giving every large tensor back to the system.

    Each activation of a few MiB is otherwise mapped, zeroed and unmapped by the system once per layer and step:
    measured here, a third of the time of a float32 pass at batch 512. Other C libraries know no such setting.
    """
    import ctypes

    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"{PROGRAM} {version('robustbench_sparse')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@guarded
def run(
    config: Annotated[Path, typer.Argument(help="A benchmark: one YAML file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Results go to OUT/<benchmark>/.")] = Path("results"),
    changes: Changes = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Work on this run only; may be repeated.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="In place of the config's seeds, as in 0,1,2.")] = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    limit: Limit = None,
    certificate: Certificate = None,
    precision: Precision = None,
    compile: Compile = None,
    quiet: Quiet = False,
) -> None:
    """Train and attack all networks of a benchmark, and write its leaderboard.

    What is already there is kept: after an interrupt the same command goes on,
    after a change of the config only what it concerns is done again. Exit code 1
    means that some row has a gap; its status says why.

    \b
    Examples:
      robustbench-sparse run configs/quickstart.yaml
      robustbench-sparse run configs/quickstart.yaml --only pgd_at --seeds 0,1,2
      robustbench-sparse run configs/quickstart.yaml --set train.epochs=2
      robustbench-sparse run configs/quickstart.yaml --device cuda --limit 100
      robustbench-sparse run configs/quickstart.yaml --certificate quick
      robustbench-sparse run configs/cifar10_small.yaml --precision bf16 --compile on
    """
    from robustbench_sparse.benchmark import run_benchmark

    chosen = _numbers(seeds)
    labels = [label for text in only or [] for label in text.split(",")]
    with _progress(quiet) as show:
        table = run_benchmark(
            config,
            out=out,
            changes=[
                *(changes or []),
                *_speed(precision, compile, ("train", "evaluation")),
                *_certified(certificate),
            ],
            only=labels,
            seeds=chosen,
            device=device,
            data_root=data_root,
            limit=limit,
            show=show,
        )
    from robustbench_sparse.leaderboard import aggregate

    _print([aggregate(table) if table["seed"].nunique() > 1 else table], "table")
    folder = out / str(table["benchmark"].iloc[0])
    typer.echo(f"\nwritten: {folder / 'leaderboard.csv'}, leaderboard_seeds.csv, leaderboard.md", err=True)
    _exit_with_gaps(table[table["run"].isin(labels)] if labels else table)


@app.command()
@guarded
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            help="A run's folder, a shrunk network's file, or package.module:factory.", show_default=False
        ),
    ],
    dataset: Annotated[str | None, typer.Option(help="Data set; a run's folder knows its own.")] = None,
    attacks: Annotated[str | None, typer.Option(help="Names of attacks, as in fgsm,pgd.")] = None,
    suite: Annotated[str | None, typer.Option(help="Attacks by name: quick, standard or full.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of the factory's network.")] = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2.")] = None,
    eps: Annotated[str | None, typer.Option(help="Radius, as in 8/255 or 0.5.")] = None,
    changes: Changes = None,
    seed: Annotated[int, typer.Option(help="Seed of the evaluation.")] = 0,
    limit: Limit = None,
    device: Device = "auto",
    certificate: Certificate = None,
    precision: Precision = None,
    compile: Compile = None,
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option(help="Keep all outcomes in this folder.")] = None,
    form: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Attack one network, trained here or elsewhere. Without attacks or a suite: the suite standard.

    Networks take images in 0..1 of shape (B, C, H, W) and return logits.
    A file of weights is read without running any code in it.

    \b
    Examples:
      robustbench-sparse evaluate results/quickstart/runs/pgd_at-s0-1a2b3c4d
      robustbench-sparse evaluate mynets:resnet --weights net.safetensors \\
          --dataset cifar10 --attacks fgsm,pgd --eps 8/255 --limit 1000
      robustbench-sparse evaluate mynets:cnn --dataset mnist --norm l2 --eps 2
      robustbench-sparse evaluate mynets:cnn --dataset image_folder \\
          --set data.path=images --format csv
    """
    check_format(form)
    if attacks is not None and suite is not None:
        raise UserError("--attacks and --suite: expected one of them, got both")
    radius = None if eps is None else _radius(eps)
    from robustbench_sparse.evaluation import evaluate as judge

    with _progress(quiet) as show:
        table = judge(
            target,
            weights=weights,
            dataset=dataset,
            attacks=None if attacks is None else [a.strip() for a in attacks.split(",") if a.strip()],
            suite=suite or "standard",
            norm=norm,
            eps=radius,
            seed=seed,
            limit=limit,
            device=device,
            data_root=data_root,
            out=out,
            changes=[
                *(changes or []),
                *_speed(precision, compile, ("evaluation",)),
                *_certified(certificate),
            ],
            show=show,
        )
    _print([table], form)
    _exit_with_gaps(table)


@app.command()
@guarded
def leaderboard(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="results/<benchmark>, or results.", show_default=False)
    ],
    form: Format = "table",
    sort: Annotated[str | None, typer.Option(metavar="COLUMN", help="Largest numbers first.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="These runs, ranked among themselves; * and ? match anything."),
    ] = None,
    seeds: Annotated[bool, typer.Option("--seeds", help="Mean and deviation over the seeds.")] = False,
) -> None:
    """Print a leaderboard, counted anew from the stored outcomes.

    \b
    Examples:
      robustbench-sparse leaderboard results/quickstart
      robustbench-sparse leaderboard results/quickstart --sort worst --seeds
      robustbench-sparse leaderboard results/mnist_robust_sparse --only 'pgd_at+*_95' --seeds
      robustbench-sparse leaderboard results --format markdown > table.md
    """
    check_format(form)
    from robustbench_sparse.leaderboard import aggregate, fold_all
    from robustbench_sparse.tables import sort_by

    tables = [aggregate(table) if seeds else table for table in fold_all(folder, only or ())]
    _print([sort_by(table, sort) for table in tables], form)


@app.command("list")
@guarded
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="attacks, defenses, models, datasets, optimizers, schedules, suites or configs.",
            show_default=False,
        ),
    ],
) -> None:
    """List what a config can name: each with one line and its settings with their defaults.

    Of a suite: its attacks, and what they take per image at most.

    \b
    Examples:
      robustbench-sparse list attacks
      robustbench-sparse list defenses
      robustbench-sparse list suites
      robustbench-sparse list configs
    """
    from robustbench_sparse.listing import lines_of

    for line in lines_of(kind):
        typer.echo(line)


@app.command()
@guarded
def check(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="results/<benchmark>, or a CSV.", show_default=False)
    ],
    against: Annotated[Path, typer.Option(metavar="CSV", help="The reference.", show_default=False)],
) -> None:
    """Compare a leaderboard with a reference CSV; exit code 1 and a table of differences if it fell off.

    A rate differs when the joint 95 % interval of both measurements excludes 0,
    a sparsity when it is off by more than 0.1 points; a row, a column or a value
    that is gone differs, too.

    \b
    Examples:
      robustbench-sparse check results/quickstart --against results/quickstart.csv
    """
    from robustbench_sparse import reference

    differences = reference.check(folder, against)
    if differences:
        typer.echo(reference.text_of(differences))
        raise typer.Exit(1)
    typer.echo(f"{folder}: everything that {against} states still holds")


@app.command()
@guarded
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run's folder.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one's.", show_default=False)],
    attack: Annotated[
        str | None, typer.Option(metavar="LABEL", help="This column only; clean and worst are columns, too.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="table or csv.")] = "table",
) -> None:
    """Compare two runs on the same images: is the difference more than noise, and which images flip?

    A dense network and its pruned self may have equal rates and still fail on
    different images: the flips show it.

    \b
    Examples:
      robustbench-sparse compare results/quickstart/runs/A results/quickstart/runs/B
      robustbench-sparse compare RUN_A RUN_B --attack worst
      robustbench-sparse compare RUN_A RUN_B --format csv > flips.csv
    """
    if form not in ("table", "csv"):
        raise UserError(f"--format: expected table or csv, got {form!r}")
    from robustbench_sparse import comparison

    table = comparison.compare_runs(first, second, attack)
    if form == "csv":
        sys.stdout.write(table.to_csv(index=False, lineterminator="\n"))
    else:
        sys.stdout.write(comparison.text_of(table, str(first), str(second)))


@app.command()
@guarded
def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
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
    from robustbench_sparse.certificate import reading
    from robustbench_sparse.outcomes import check_run_folder, read_manifest

    check_run_folder(run)
    sys.stdout.write(reading.explain(run, read_manifest(run.absolute().parent.parent), failed_only=failed))


@app.command()
@guarded
def curve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    attack: Annotated[
        str, typer.Option(metavar="LABEL", help="A minimum-norm attack, such as cw.", show_default=False)
    ],
    eps: Annotated[
        str | None, typer.Option(help="Radii, as in 0,0.1,8/255; by default 21 of them.", show_default=False)
    ] = None,
    form: Annotated[str, typer.Option("--format", help="table or csv.")] = "table",
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw it, too: .png, .pdf or .svg.", show_default=False),
    ] = None,
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
    if form not in ("table", "csv"):
        raise UserError(f"--format: expected table or csv, got {form!r}")
    radii = None if eps is None else [_radius(part.strip()) for part in eps.split(",")]
    from robustbench_sparse import curve as curves

    table = curves.curve(run, attack, radii)
    if plot is not None:
        curves.plot(table, plot)
    if form == "csv":
        sys.stdout.write(table.to_csv(index=False, lineterminator="\n"))
    else:
        sys.stdout.write(curves.text_of(table))
    if plot is not None:
        typer.echo(f"\nwritten: {plot}", err=True)


@app.command()
@guarded
def history(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="results/<benchmark>.", show_default=False)],
    only: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="This run only; may be repeated.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Every layer by itself; CSV only.")] = False,
    seeds: Annotated[bool, typer.Option("--seeds", help="Every seed by itself; CSV only.")] = False,
    form: Annotated[str, typer.Option("--format", help="table or csv.")] = "table",
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw it, too: .png, .pdf or .svg.", show_default=False),
    ] = None,
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
    if form not in ("table", "csv"):
        raise UserError(f"--format: expected table or csv, got {form!r}")
    if (layers or seeds) and form != "csv":
        raise UserError(f"--{'layers' if layers else 'seeds'}: expected --format csv with it, got {form}")
    from robustbench_sparse import history as histories

    found = histories.collect(folder, only or (), layers=layers)
    means = histories.over_seeds(found)
    if plot is not None:
        if layers:
            raise UserError("--plot: expected no --layers with it")
        histories.plot(means, plot, folder.absolute().name)
    if form == "csv":
        sys.stdout.write((found if seeds else means).to_csv(index=False, lineterminator="\n"))
    else:
        sys.stdout.write(histories.text_of(means))
    if plot is not None:
        typer.echo(f"\nwritten: {plot}", err=True)


app.command()(guarded(cli_sparsity.sparsity))
app.command()(guarded(cli_sparsity.shrink))


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--seeds: expected whole numbers such as 0,1,2, got {text!r}")
    return [int(part) for part in parts]


def _speed(precision: str | None, compile: str | None, parts: tuple[str, ...]) -> list[str]:
    """The options as changes of a config; its schema knows which values there are."""
    options = {"precision": precision, "compile": compile}
    return [f"{part}.{k}={v}" for part in parts for k, v in options.items() if v is not None]


def _certified(level: str | None) -> list[str]:
    return [] if level is None else [f"evaluation.certificate={level}"]


def _radius(text: str) -> float:
    from robustbench_sparse.yaml_numbers import scalar

    value = scalar(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise UserError(f"--eps: expected a number >= 0 such as 8/255, got {text!r}")
    return float(value)


@contextmanager
def _progress(quiet: bool) -> Iterator[Show]:
    from robustbench_sparse.progress import RichShow, Silent

    if quiet:
        yield Silent()
        return
    from rich.console import Console

    with RichShow(Console(stderr=True)) as show:
        yield show


def _print(tables: list[pd.DataFrame], form: str) -> None:
    from robustbench_sparse.tables import show, text_of

    if form == "table":
        from rich.console import Console

        show(Console(), tables)
    else:
        sys.stdout.write(text_of(tables, form))


def _exit_with_gaps(table: pd.DataFrame) -> None:
    if any(not str(status).startswith("ok") for status in table["status"]):
        raise typer.Exit(1)
