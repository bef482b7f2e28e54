"""The command that draws figures of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from robustbench_sparse.cli.common import DataRoot, TrustPlugins, modules_of
from robustbench_sparse.foundation.errors import UserError


def plot(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help="The figure; without one, a list of them.", show_default=False),
    ] = None,
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...",
            help="Folders of runs; results/<benchmark> for all of its; for tradeoff, tables.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="A .pdf, .png or .svg.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="Runs of this label only; * and ? match anything."),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="This layer; may be repeated.")
    ] = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="A panel for every layer.")] = False,
    log: Annotated[bool, typer.Option("--log", help="A logarithmic scale.")] = False,
    sorted_: Annotated[bool, typer.Option("--sorted", help="Norms in falling order.")] = False,
    bins: Annotated[int | None, typer.Option(help="Bins of a histogram.", show_default=False)] = None,
    zoom: Annotated[float | None, typer.Option(help="Largest value drawn.", show_default=False)] = None,
    first: Annotated[
        int | None, typer.Option(help="So many outputs only, the first.", show_default=False)
    ] = None,
    epochs: Annotated[
        str | None, typer.Option(help="After so many epochs, as in 0,5,20.", show_default=False)
    ] = None,
    x: Annotated[
        str | None, typer.Option(metavar="KEY", help="A setting, as in lam; or a column.", show_default=False)
    ] = None,
    y: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A column of the leaderboard; may be repeated."),
    ] = None,
    twin: Annotated[
        list[str] | None,
        typer.Option(metavar="TWIN=ROW", help="A dense twin and the row it belongs to; may be repeated."),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Positions in the test set, as in 0,3,8.", show_default=False)
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="An attack; clean and worst for flips; may be repeated."),
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(help="one or two columns of a printed page; else as it needs.", show_default=False),
    ] = None,
    data_root: DataRoot = None,
    trust_plugins: TrustPlugins = None,
) -> None:
    """Draw a figure of runs, as those of the papers: weights, channels, widths, skips, ...

    Without a KIND it lists the figures, with the options that each takes. Nothing
    is trained or attacked. Needs matplotlib (the extra "plot"). docs/figures.md
    says which published figure each corresponds to. --width makes it 3.25 or
    6.75 inches wide; the fonts of a .pdf are embedded.

    \b
    Examples:
      robustbench-sparse plot
      robustbench-sparse plot weights RUN_A RUN_B --log -o weights.pdf
      robustbench-sparse plot channels RUN --sorted -o channels.png
      robustbench-sparse plot layer RUN --layer conv -o conv.png
      robustbench-sparse plot path results/mine --x rgsm.lam \\
          --y channel_sparsity --y pgd -o path.svg
      robustbench-sparse plot features RUN --epochs 0,5,20 -o features.png
      robustbench-sparse plot widths results/mine --only autoencoder -o w.pdf
      robustbench-sparse plot tradeoff results/mine --x nonzero_parameters \\
          --y pgd20 -o tradeoff.svg
      robustbench-sparse plot eps results/mine --attack cw --width one -o eps.pdf
      robustbench-sparse plot flips RUN_A RUN_B --width two -o flips.pdf
    """
    from robustbench_sparse.reporting.figures.making import built, lines_of, make

    if kind is None:
        for line in lines_of():
            typer.echo(line)
        return
    given: dict[str, Any] = {
        "layer": tuple(layer or ()),
        "per_layer": per_layer,
        "log": log,
        "sorted": sorted_,
        "bins": bins,
        "zoom": zoom,
        "first": first,
        "epochs": _numbers(epochs, "--epochs"),
        "x": x,
        "y": tuple(y or ()),
        "twin": tuple(twin or ()),
        "images": _numbers(images, "--images"),
        "attack": tuple(attack or ()),
    }
    options = {k: v for k, v in given.items() if v is not None and v is not False and v != ()}
    takes_data = hasattr(built(kind, options), "data_root")
    if not runs:
        raise UserError(f"plot {kind}: expected folders of runs behind it")
    if out is None:
        raise UserError(f"plot {kind}: -o: expected a file ending in one of .pdf, .png, .svg")
    if takes_data and data_root is not None:
        options["data_root"] = str(data_root)
    from robustbench_sparse.config import plugins

    plugins.trust(modules_of(trust_plugins))
    count = make(kind, runs, out, options, only or (), width)
    typer.echo(f"written: {out} ({count} run{'s' * (count != 1)})", err=True)


def _numbers(text: str | None, option: str) -> tuple[int, ...]:
    """Whole numbers with commas between; UserError for anything else."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"{option}: expected whole numbers such as 0,5,20, got {text!r}")
    return tuple(int(part) for part in parts)
