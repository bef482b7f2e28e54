"""The commands that hand a row to other benchmarks, and take adversarials of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustbench_sparse.cli.common import DataRoot, TrustPlugins, modules_of, progress

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, judged to its end.", show_default=False)
]
Network = Annotated[
    str | None,
    typer.Option(
        metavar="TARGET",
        help="What was judged, where it was not trained here, as in mynets:cnn; it is shown to be that.",
        show_default=False,
    ),
]
Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights of such a network.", show_default=False)
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def export(
    run: Run,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to.", show_default=False)
    ],
    form: Annotated[str, typer.Option("--format", help="robustbench.")] = "robustbench",
    name: Annotated[
        str | None,
        typer.Option(help="Of the files, as in Rice2020Overfitting; the row's label.", show_default=False),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the paper.", show_default=False)] = None,
    authors: Annotated[str | None, typer.Option(help="Of the paper.", show_default=False)] = None,
    link: Annotated[str | None, typer.Option(help="To the paper.", show_default=False)] = None,
    venue: Annotated[
        str | None, typer.Option(help="Of the paper, as in ICML 2020.", show_default=False)
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="What to call it; the row's model.", show_default=False)
    ] = None,
    reported: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Robust accuracy that the paper has.", show_default=False),
    ] = None,
    additional_data: Annotated[
        bool | None,
        typer.Option(
            "--additional-data/--no-additional-data", help="Trained on more data.", show_default=False
        ),
    ] = None,
    adversarials: Annotated[
        bool, typer.Option("--adversarials/--no-adversarials", help="Make the images, too.")
    ] = True,
    network: Network = None,
    weights: Weights = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    trust_plugins: TrustPlugins = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a row as RobustBench has one: the entry of its model_info, and the adversarials.

    DIR/model_info/<data>/<Linf or L2>/<name>.json has exactly its keys, and what
    else is known of the row under one of its own; <name>.pt is a plain tensor of
    the images, in the order of the data set. AutoAttack has to be among the row's
    attacks. The images are made again: that takes as long as attacking the row.

    \b
    Examples:
      robustbench-sparse export results/quickstart/runs/pgd_at-s0-1a2b3c4d -o out
      robustbench-sparse export RUN -o out --name Me2026Sparse \\
          --title "Sparse and robust" --authors "Jane Doe" --venue Unpublished
      robustbench-sparse export RUN -o out --no-adversarials
    """
    from robustbench_sparse.exchange.export import export as write

    known = {
        "name": title,
        "authors": authors,
        "link": link,
        "venue": venue,
        "architecture": architecture,
        "reported": None if reported is None else f"{reported:g}",
        "additional_data": additional_data,
    }
    with progress(quiet) as show:
        files = write(
            run,
            output,
            form=form,
            name=name,
            about=known,
            adversarials=adversarials,
            force=force,
            network=network,
            weights=weights,
            data_root=data_root,
            device=device,
            trust_plugins=tuple(modules_of(trust_plugins)),
            show=show,
        )
    typer.echo(f"written: {', '.join(map(str, files))}")


def challenge(
    run: Run,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Adversarials: .pt or .safetensors.", show_default=False)
    ],
    author: Annotated[str, typer.Option(help="Who made them; shown beside the number.", show_default=False)],
    network: Network = None,
    weights: Weights = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    trust_plugins: TrustPlugins = None,
    quiet: Quiet = False,
) -> None:
    """Hold adversarials of others against a row: where they fool its network, its number falls.

    FILE has one tensor, an image for each judged one (or each test image), in the
    order of the data set; what was not attacked stands as it is. Shape, finite
    values, [0, 1] and the benchmark's ball are checked, and a file that breaks
    one of them is refused whole. The row's own network then judges each image in
    float32. What is broken is stored with its images and its author, and counts
    in worst as what a check finds; the table is counted again. No code in FILE
    is run.

    \b
    Examples:
      robustbench-sparse challenge results/quickstart/runs/pgd_at-s0-1a2b3c4d \\
          adversarials.pt --author "Jane Doe"
      robustbench-sparse challenge RUN theirs.safetensors --author "A team" \\
          --network mynets:cnn --weights net.safetensors
    """
    from robustbench_sparse.exchange.challenge import challenge as settle

    with progress(quiet) as show:
        done = settle(
            run,
            file,
            author,
            network=network,
            weights=weights,
            data_root=data_root,
            device=device,
            trust_plugins=tuple(modules_of(trust_plugins)),
            show=show,
        )
    typer.echo("\n".join(done.lines()))
