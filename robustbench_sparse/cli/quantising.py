"""The command that makes a network's file in int8 and says what that is worth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from robustbench_sparse.cli.common import (
    Changes,
    DataRoot,
    TrustPlugins,
    check_format,
    modules_of,
    progress,
    radius,
)
from robustbench_sparse.cli.sparsity import DatasetName, Form, TargetName, Weights


def quantise(
    target: TargetName,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to: .onnx.", show_default=False)
    ],
    shrink: Annotated[bool, typer.Option("--shrink", help="Remove dead channels and neurons first.")] = False,
    attacks: Annotated[str | None, typer.Option(help="Names of attacks, as in fgsm,pgd.")] = None,
    suite: Annotated[str | None, typer.Option(help="Attacks by name: quick, standard or full.")] = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2.")] = None,
    eps: Annotated[str | None, typer.Option(help="Radius, as in 8/255 or 0.5.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the images of calibration and of the attacks.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge only so many test images.")] = None,
    calibration: Annotated[
        int, typer.Option(min=1, metavar="N", help="Training images that activations are calibrated on.")
    ] = 512,
    weights: Weights = None,
    dataset: DatasetName = None,
    changes: Changes = None,
    data_root: DataRoot = None,
    trust_plugins: TrustPlugins = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    form: Form = "table",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Round a trained network to int8, and measure size, time and robustness.

    One scale for each output channel of the weights, one for each activation,
    calibrated on training images. Attacked are the float network and the one in
    int8: that by the float network's adversarials, by its gradients, and
    without any. Attacks are those of the run's benchmark, or the suite standard.
    FILE is an ONNX file; beside it go a report, .json, and the verdicts on every
    image, .csv. Needs the extra "quantise", for --shrink the extra "shrink", too.

    \b
    Examples:
      robustbench-sparse quantise results/quickstart/runs/rgsm-s0-1a2b3c4d \\
          -o int8.onnx
      robustbench-sparse quantise RUN -o int8.onnx --shrink --suite standard
      robustbench-sparse quantise mynets:cnn --weights net.safetensors \\
          --dataset mnist --eps 0.1 -o int8.onnx
    """
    check_format(form, ("table", "csv", "markdown"))
    chosen = None if eps is None else radius(eps)
    from robustbench_sparse.config import plugins
    from robustbench_sparse.quantising import quantise as quantising
    from robustbench_sparse.reporting.quantised import show_quantised

    plugins.trust(modules_of(trust_plugins))
    with progress(quiet) as show:
        report = quantising.quantise(
            target,
            output,
            weights=weights,
            dataset=dataset,
            data_root=data_root,
            changes=changes or [],
            shrink=shrink,
            attacks=None if attacks is None else modules_of(attacks),
            suite=suite,
            norm=norm,
            eps=chosen,
            seed=seed,
            limit=limit,
            calibration=calibration,
            force=force,
            show=show,
        )
    sys.stdout.write(show_quantised(report, form))
    files = [output, output.with_suffix(".json"), output.with_suffix(".csv")]
    typer.echo(f"\nwritten: {', '.join(map(str, files))}", err=True)
