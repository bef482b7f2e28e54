"""The commands about zeros: counting them, and removing what they make useless."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from robustbench_sparse.cli.common import Changes, DataRoot, TrustPlugins, check_format, modules_of

TargetName = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A run's folder, zoo:NAME, a shrunk network's file, or package.module:factory.",
        show_default=False,
    ),
]
Weights = Annotated[Path | None, typer.Option(help="Weights of the factory's network.", show_default=False)]
DatasetName = Annotated[
    str | None, typer.Option("--dataset", help="Data set; a run knows its own.", show_default=False)
]
Form = Annotated[str, typer.Option("--format", help="table, csv or markdown.")]


def sparsity(
    target: TargetName,
    weights: Weights = None,
    dataset: DatasetName = None,
    changes: Changes = None,
    data_root: DataRoot = None,
    trust_plugins: TrustPlugins = None,
    form: Form = "table",
) -> None:
    """Count a network's zeros layer by layer, in the file its weights come from.

    Zero weights, input channels, kernels and rows (filters and neurons);
    multiply-accumulates of one image with and without the zeros; and what the
    methods were asked for beside what is there.

    \b
    Examples:
      robustbench-sparse sparsity results/quickstart/runs/rgsm-s0-1a2b3c4d
      robustbench-sparse sparsity RUN --format csv > layers.csv
      robustbench-sparse sparsity mynets:cnn --weights net.safetensors \\
          --dataset mnist
      robustbench-sparse sparsity small.safetensors --format markdown
    """
    check_format(form, ("table", "csv", "markdown"))
    from robustbench_sparse.config import plugins
    from robustbench_sparse.reporting import layers as layer_tables

    plugins.trust(modules_of(trust_plugins))
    counts = layer_tables.count(
        target, weights=weights, dataset=dataset, data_root=data_root, changes=changes or []
    )
    sys.stdout.write(layer_tables.show_counts(counts, form))


def shrink(
    target: TargetName,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="Where to: .safetensors.", show_default=False),
    ],
    onnx: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Export it, too: .onnx.", show_default=False)
    ] = None,
    weights: Weights = None,
    dataset: DatasetName = None,
    changes: Changes = None,
    data_root: DataRoot = None,
    trust_plugins: TrustPlugins = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    form: Form = "table",
) -> None:
    """Remove dead channels and neurons, and measure what that saves.

    Dead is what is zero for every image, and what nothing reads. The smaller
    network has to give the same logits on test images, else nothing is
    written. Beside FILE a report goes to FILE's name with .json. The file can
    be evaluated like a run. Needs the extra "shrink".

    \b
    Examples:
      robustbench-sparse shrink results/quickstart/runs/rgsm-s0-1a2b3c4d \\
          -o small.safetensors
      robustbench-sparse shrink RUN -o small.safetensors --onnx small.onnx
      robustbench-sparse shrink mynets:cnn --weights net.safetensors \\
          --dataset mnist -o small.safetensors
      robustbench-sparse evaluate small.safetensors --suite quick
    """
    check_format(form, ("table", "csv", "markdown"))
    from robustbench_sparse import shrinking
    from robustbench_sparse.config import plugins
    from robustbench_sparse.reporting.layers import show_report

    plugins.trust(modules_of(trust_plugins))
    report = shrinking.shrink(
        target,
        output,
        weights=weights,
        dataset=dataset,
        data_root=data_root,
        changes=changes or [],
        onnx=onnx,
        force=force,
    )
    sys.stdout.write(show_report(report, form))
    files = [output, output.with_suffix(".json"), *([] if onnx is None else [onnx])]
    typer.echo(f"\nwritten: {', '.join(map(str, files))}", err=True)
