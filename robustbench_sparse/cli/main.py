"""The command line: tables go to stdout, progress and errors to stderr.

Exit codes: 0 done; 1 done, but a row that was worked on has a gap, or the reference does not hold any more;
2 something the user can mend, and one line says what; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

# Nothing heavy may be imported up here: `--help` has to answer at once.
from robustbench_sparse.cli import (
    exchanging,
    plotting,
    pushing,
    quantising,
    reading,
    reporting_pages,
    scaffolding,
    sparsity,
    studies,
)
from robustbench_sparse.cli.common import (
    Changes,
    DataRoot,
    TrustPlugins,
    check_format,
    guarded,
    located,
    modules_of,
    progress,
    radius,
)
from robustbench_sparse.foundation import ahead
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.processes import WORKERS
from robustbench_sparse.foundation.tuning import tune_process

if TYPE_CHECKING:
    import pandas as pd


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
        help="fp32 or bf16, for training and attacks; auto: attacks in what is faster. Verdicts are float32's.",
        show_default=False,
    ),
]
Compile = Annotated[
    str | None,
    typer.Option(help="on or off: torch.compile for both; or auto, for attacks.", show_default=False),
]
MOST_JOBS = 1024
Certificate = Annotated[
    str | None,
    typer.Option(help="off, quick or full: examine whether the numbers can be believed.", show_default=False),
]
CertificateSeconds = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Plan the certificate with so many seconds: the most telling checks first, and say what is left out.",
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Judge only so many test images.")]
Format = Annotated[str, typer.Option("--format", help="table, csv, markdown or latex.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def main() -> None:
    """Entry point of the command."""
    tune_process()
    app()


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
    config: Annotated[
        Path,
        typer.Argument(
            help="A benchmark: one YAML file, or the name of one that comes along.", show_default=False
        ),
    ],
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
    certificate_seconds: CertificateSeconds = None,
    precision: Precision = None,
    compile: Compile = None,
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name the changed table, in place of its changes.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="A changed config's table takes the place of the one there.")
    ] = False,
    jobs: Annotated[
        str, typer.Option(metavar="N", help="Rows side by side at most; auto: what cores and memory allow.")
    ] = "auto",
    backend: Annotated[
        str, typer.Option(help="Where rows are worked on: local (this machine), ray or slurm.")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Of --backend ray: local starts it here, auto finds the cluster of this machine, or HOST:PORT.",
            show_default=False,
        ),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,...",
            help="Follow trainings while they last: csv, tensorboard; written to OUT/<benchmark>/logs/.",
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train and attack all networks of a benchmark, and write its leaderboard.

    What is already there is kept: after an interrupt the same command goes on,
    and rows or attacks that are added to the file are added to its table. What
    is changed on the command line (--set, --seeds, --limit) is a trial: its
    table goes to OUT/<benchmark>@<change>/, with the trainings it can take over.
    A file whose change would put other numbers into the same table is refused;
    --replace replaces the table. Several commands that work on one table share
    its rows. Exit code 1 means that some row has a gap; its status says why.

    \b
    Examples:
      robustbench-sparse run quickstart
      robustbench-sparse run configs/quickstart.yaml
      robustbench-sparse run configs/quickstart.yaml --only pgd_at --seeds 0,1,2
      robustbench-sparse run configs/quickstart.yaml --set train.epochs=30
      robustbench-sparse run configs/quickstart.yaml --device cuda --limit 100
      robustbench-sparse run configs/quickstart.yaml --certificate quick
      robustbench-sparse run configs/cifar10_small.yaml --precision bf16 --compile on
      robustbench-sparse run configs/mnist_clip.yaml --jobs 4
      robustbench-sparse run configs/quickstart.yaml --log csv,tensorboard
      robustbench-sparse run configs/mnist_clip.yaml --backend ray --ray-address auto
    """
    count, chosen = _jobs(jobs), _numbers(seeds)
    labels = [label for text in only or [] for label in text.split(",")]
    # They import PyTorch while this process does. ``auto`` knows only later how many it wants; more than there are
    # cores would not be there any sooner, and there may be fewer rows.
    workers = min(count, os.cpu_count() or 1) if count is not None and count > 1 and backend == "local" else 0
    with ahead.started(WORKERS, workers), progress(quiet) as show:
        from robustbench_sparse.backends import backend_of
        from robustbench_sparse.benchmark import run_benchmark

        table = run_benchmark(
            config,
            out=out,
            changes=[
                *(changes or []),
                *_speed(precision, compile, ("train", "evaluation")),
                *_certified(certificate, certificate_seconds),
            ],
            only=labels,
            seeds=chosen,
            device=device,
            data_root=data_root,
            limit=limit,
            variant=variant,
            replace=replace,
            backend=backend_of(backend, jobs=count, ray_address=ray_address),
            log=[kind.strip() for kind in (log or "").split(",") if kind.strip()],
            show=show,
        )
    from robustbench_sparse.reporting.leaderboard import aggregate
    from robustbench_sparse.runs import names

    shown = table[table["run"].isin(labels)] if labels else table  # ranks are those of the whole table
    _print([aggregate(shown) if shown["seed"].nunique() > 1 else shown], "table")
    folder = out / str(table["benchmark"].iloc[0])
    beside = f"{names.LEADERBOARD_SEEDS}, {names.LEADERBOARD_TEXT}"
    typer.echo(f"\nwritten: {folder / names.LEADERBOARD}, {beside}", err=True)
    _exit_with_gaps(shown)


@app.command()
@guarded
def evaluate(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A run's folder, zoo:NAME, a shrunk network's file, package.module:factory; torchvision:, timm:, hf: "
            "or robustbench:NAME; an .onnx or .pt2 file.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="TARGET", help="The same as an option.", show_default=False),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set; a run's folder knows its own.")] = None,
    attacks: Annotated[str | None, typer.Option(help="Names of attacks, as in fgsm,pgd.")] = None,
    suite: Annotated[str | None, typer.Option(help="Attacks by name: quick, standard or full.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the factory's or library's network.")
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="Normalisation in front: numbers, as in 0.49,0.48,0.45, or imagenet, cifar10, mnist, half, none ...",
            show_default=False,
        ),
    ] = None,
    std: Annotated[str | None, typer.Option(help="With --mean in numbers.", show_default=False)] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="The network's classes that are the data's: 3,17,207, cat=281,dog=207, or folders (by their names).",
            show_default=False,
        ),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2.")] = None,
    eps: Annotated[str | None, typer.Option(help="Radius, as in 8/255 or 0.5.")] = None,
    changes: Changes = None,
    seed: Annotated[int, typer.Option(help="Seed of the evaluation.")] = 0,
    limit: Limit = None,
    device: Device = "auto",
    certificate: Certificate = None,
    certificate_seconds: CertificateSeconds = None,
    precision: Precision = None,
    compile: Compile = None,
    data_root: DataRoot = None,
    expect_clean: Annotated[
        float | None,
        typer.Option(
            min=0, max=100, help="Clean accuracy in percent that it should have; stop far below it."
        ),
    ] = None,
    no_gate: Annotated[
        bool, typer.Option("--no-gate", help="Do not look at the network first; the row says so.")
    ] = False,
    trust_plugins: TrustPlugins = None,
    trust_file: Annotated[
        bool, typer.Option("--trust-file", help="The .pt2 file may run code while it is read.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Keep all outcomes in this folder.")] = None,
    form: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Attack one network, trained here or elsewhere. Without attacks or a suite: the suite standard.

    A network of the zoo is attacked as its record says, and then held against it.

    Networks take images in 0..1 of shape (B, C, H, W) and return logits.
    A file of weights is read without running any code in it, and nothing is
    downloaded. The gate looks at the network first, a line for each check: a
    clean accuracy near chance, or far below --expect-clean, stops before
    anything is attacked; what else looks wrong is said and stands in the flags.

    \b
    Examples:
      robustbench-sparse evaluate results/quickstart/runs/pgd_at-s0-1a2b3c4d
      robustbench-sparse evaluate zoo:mnist/lenet-trades --limit 500
      robustbench-sparse evaluate mynets:resnet --weights net.safetensors \\
          --dataset cifar10 --attacks fgsm,pgd --eps 8/255 --limit 1000 \\
          --expect-clean 84.3
      robustbench-sparse evaluate mynets:cnn --dataset mnist --norm l2 --eps 2
      robustbench-sparse evaluate --model timm:resnet18.a1_in1k --weights r18.pth \\
          --dataset image_folder --set data.path=val --classes folders
      robustbench-sparse evaluate mynets:cnn --weights cnn.pth --mean cifar10 --dataset cifar10
      robustbench-sparse evaluate net.onnx --dataset mnist --attacks square --eps 0.1
      robustbench-sparse evaluate mynets:cnn --dataset image_folder \\
          --set data.path=images --format csv
    """
    check_format(form)
    if (target is None) == (model is None):
        raise UserError(
            f"--model: expected a network, as TARGET or as --model TARGET, got {'none' if model is None else 'both'}"
        )
    target = str(model if target is None else target)
    if attacks is not None and suite is not None:
        raise UserError("--attacks and --suite: expected one of them, got both")
    chosen = None if eps is None else radius(eps)
    from robustbench_sparse.evaluation import evaluate as judge

    with progress(quiet) as show:
        table = judge(
            target,
            weights=weights,
            dataset=dataset,
            attacks=None if attacks is None else [a.strip() for a in attacks.split(",") if a.strip()],
            suite=suite,
            norm=norm,
            eps=chosen,
            seed=seed,
            limit=limit,
            device=device,
            data_root=data_root,
            expect_clean=expect_clean,
            mean=mean,
            std=std,
            classes=classes,
            gate=not no_gate,
            trust_plugins=modules_of(trust_plugins),
            trust_file=trust_file,
            out=out,
            changes=[
                *(changes or []),
                *_speed(precision, compile, ("evaluation",)),
                *_certified(certificate, certificate_seconds),
            ],
            show=show,
        )
    _print([table], form)
    if target.startswith("zoo:") and not any((dataset, attacks, suite, norm, eps)):
        from robustbench_sparse.zoo import against_record

        lines, agrees = against_record(table, target)
        typer.echo("\n".join(["", *lines]), err=True)
        if not agrees:
            raise typer.Exit(1)
    _exit_with_gaps(table.tail(1))


@app.command()
@guarded
def leaderboard(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="results/<benchmark>, results, or where they were pushed.", show_default=False
        ),
    ],
    form: Format = "table",
    sort: Annotated[str | None, typer.Option(metavar="COLUMN", help="Largest numbers first.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="These runs, ranked among themselves; * and ? match anything."),
    ] = None,
    seeds: Annotated[bool, typer.Option("--seeds", help="Mean and deviation over the seeds.")] = False,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="These columns, as in clean,worst,parameters.", show_default=False
        ),
    ] = None,
) -> None:
    """Print a leaderboard, counted anew from the stored outcomes.

    --columns takes the names of leaderboard.csv, in their order; a rate comes
    with its interval.

    \b
    Examples:
      robustbench-sparse leaderboard results/quickstart
      robustbench-sparse leaderboard results/quickstart --sort worst --seeds
      robustbench-sparse leaderboard results/mnist_robust_sparse --only 'pgd_at+*_95' --seeds
      robustbench-sparse leaderboard results --format markdown > table.md
      robustbench-sparse leaderboard results/quickstart \\
          --columns clean,worst,nonzero_parameters,verdict
      robustbench-sparse leaderboard s3://bucket/tables/quickstart
    """
    check_format(form)
    from robustbench_sparse.reporting.choosing import check_columns, known_columns, names_of
    from robustbench_sparse.reporting.leaderboard import aggregate, tabulate_all
    from robustbench_sparse.reporting.tables import sort_by

    names = names_of(columns)
    tables = [aggregate(table) if seeds else table for table in tabulate_all(located(folder), only or ())]
    check_columns(names, known_columns(tables))
    _print([sort_by(table, sort) for table in tables], form, names)


@app.command("list")
@guarded
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="attacks, shifts, defenses, regularisers, models, tasks, datasets, optimizers, schedules, suites or "
            "configs.",
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
    from robustbench_sparse.cli.listing import lines_of

    for line in lines_of(kind):
        typer.echo(line)


for _verb in (
    reading.check, reading.compare, reading.explain, reading.curve, reading.history,
    sparsity.sparsity, sparsity.shrink, quantising.quantise, plotting.plot, studies.study, pushing.push,
    exchanging.export, exchanging.challenge, scaffolding.new,
    reporting_pages.report, reporting_pages.serve,
):  # fmt: skip
    app.command()(guarded(_verb))


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--seeds: expected whole numbers such as 0,1,2, got {text!r}")
    return [int(part) for part in parts]


def _jobs(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MOST_JOBS:
        raise UserError(f"--jobs: expected auto or a whole number from 1 to {MOST_JOBS}, got {text!r}")
    return int(text)


def _speed(precision: str | None, compile: str | None, parts: tuple[str, ...]) -> list[str]:
    """The options as changes of a config; its schema knows which values there are.

    Training leaves nothing to a measurement: ``auto`` means attacks alone.
    """
    options = {"precision": precision, "compile": compile}
    given = {k: v for k, v in options.items() if v is not None}
    return [f"{part}.{k}={v}" for part in parts for k, v in given.items() if (part, v) != ("train", "auto")]


def _certified(level: str | None, seconds: int | None) -> list[str]:
    out = [] if level is None else [f"evaluation.certificate={level}"]
    return out if seconds is None else [*out, f"evaluation.certificate_seconds={seconds}"]


def _print(tables: list[pd.DataFrame], form: str, names: Sequence[str] = ()) -> None:
    from robustbench_sparse.reporting.tables import show, text_of

    if form == "table":
        from rich.console import Console

        show(Console(), tables, names)
    else:
        sys.stdout.write(text_of(tables, form, names))


def _exit_with_gaps(table: pd.DataFrame) -> None:
    if any(not str(status).startswith("ok") for status in table["status"]):
        raise typer.Exit(1)
