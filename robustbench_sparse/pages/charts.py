"""Charts of leaderboards, as Vega-Lite's specifications: trade-off, accuracy against radius and zeros, histories.

Altair makes them, vl-convert draws those that stand in the page without a script, and Vega those that answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.texts import printable
from robustbench_sparse.pages.boards import Board
from robustbench_sparse.pages.methods import division_of, sparse_method
from robustbench_sparse.pages.rows import slug
from robustbench_sparse.reporting import curve as curves
from robustbench_sparse.reporting import history as histories
from robustbench_sparse.runs.evidence import REFUTED

# Okabe and Ito's colours, told apart by all common kinds of colour vision; the shapes tell them apart as well.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", "#000000"]
DASHES = {
    "adversarial training": [1, 0],
    "natural training": [5, 3],
    "another defense": [1, 3],
    "from elsewhere": [9, 3],
}
WIDTH, HEIGHT = 560, 340
MOST_CURVES, MOST_EPOCHS = 12, 60
Spec = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """``id`` names its files, ``title`` and ``about`` stand above it; ``spec`` is Vega-Lite's."""

    id: str
    title: str
    about: str
    spec: Spec


def charts_of(boards: Sequence[Board]) -> list[tuple[str, list[Chart]]]:
    """Each board's name with its charts; boards that nothing can be drawn of are left out."""
    out = []
    for number, board in enumerate(boards):
        makers = (_tradeoff, _against_zeros, _against_eps, _histories)
        found = [
            chart for make in makers if (chart := make(board, f"{make.__name__[1:]}-{number}")) is not None
        ]
        if found:
            out.append((printable(board.name), found))
    return out


def front_of(points: Sequence[Mapping[str, Any]], x_up: bool, y_up: bool) -> list[int]:
    """Places of the points that no other is as good as in both ways and better in one; in the order of x.

    Args:
        points: with ``x``, ``y`` and ``out``, which takes a point out of the comparison.
        x_up, y_up: whether more is better.
    """
    better = sorted(
        (i for i, p in enumerate(points) if not p.get("out")),
        key=lambda i: (points[i]["x"] * (-1 if x_up else 1), points[i]["y"] * (-1 if y_up else 1)),
    )
    front: list[int] = []
    best = -math.inf
    for i in better:
        y = points[i]["y"] * (1 if y_up else -1)
        if y > best:
            front.append(i)
            best = y
    return sorted(front, key=lambda i: points[i]["x"])


def explorer() -> Spec:
    """The trade-off without data: the page fills ``points`` and ``front`` in for the pair of columns that is chosen."""
    return _spec(_tradeoff_layers([], [], "x", "y", True))


def _tradeoff(board: Board, name: str) -> Chart | None:
    points = [
        {
            "x": e.row["clean"], "y": e.row["worst"], "xlo": e.row.get("clean_lo"), "xhi": e.row.get("clean_hi"),
            "ylo": e.row.get("worst_lo"), "yhi": e.row.get("worst_hi"), "run": printable(e.row["run"]),
            "seed": e.row.get("seed", 0), "training": division_of(e.methods, e.row), "id": slug(e),
            "zeros": e.row.get("weight_sparsity", 0.0), "out": e.row.get("verdict") == REFUTED,
        }
        for e in board.entries
        if "clean" in e.row and "worst" in e.row
    ]  # fmt: skip
    if len(points) < 2:
        return None
    front = [points[i] for i in front_of(points, True, True)]
    return Chart(
        id=name,
        title="Clean, robust, sparse",
        about="A point is a row with its 95 % intervals, larger the more of its weights are zero; the line is the "
        "Pareto front. Refuted rows are hollow and on no front.",
        spec=_spec(_tradeoff_layers(points, front, "clean accuracy in percent", "worst case in percent")),
    )


def _tradeoff_layers(
    points: Sequence[Mapping[str, Any]],
    front: Sequence[Mapping[str, Any]],
    x: str,
    y: str,
    empty: bool = False,
) -> Any:
    import altair as alt

    data = alt.NamedData("points") if empty else alt.InlineData(list(points), name="points")
    line = alt.NamedData("front") if empty else alt.InlineData(list(front), name="front")
    across = alt.X("x:Q", title=x, scale=alt.Scale(zero=False, nice=True))
    up = alt.Y("y:Q", title=y, scale=alt.Scale(zero=False, nice=True))
    colour = alt.Color("training:N", title="training", scale=alt.Scale(range=COLOURS))
    wide = (
        alt.Chart(data)
        .mark_rule(opacity=0.35)
        .encode(x=alt.X("xlo:Q", title=x), x2="xhi:Q", y=up, color=colour)
    )
    high = (
        alt.Chart(data)
        .mark_rule(opacity=0.35)
        .encode(y=alt.Y("ylo:Q", title=y), y2="yhi:Q", x=across, color=colour)
    )
    stairs = (
        alt.Chart(line)
        .mark_line(color="#7F7F7F", strokeDash=[4, 3], interpolate="linear")
        .encode(x=across, y=up)
    )
    dots = alt.Chart(data).mark_point(strokeWidth=1.5).encode(
        x=across,
        y=up,
        color=colour,
        shape=alt.Shape("training:N", title="training"),
        size=alt.Size("zeros:Q", title="zero weights in %", scale=alt.Scale(domain=[0, 100], range=[40, 220])),
        fillOpacity=alt.condition("datum.out", alt.value(0), alt.value(0.55)),
        fill=alt.Fill("training:N", scale=alt.Scale(range=COLOURS), legend=None),
        tooltip=["run:N", "seed:Q", alt.Tooltip("x:Q", title=x, format=".4~g"),
                 alt.Tooltip("y:Q", title=y, format=".4~g"), alt.Tooltip("zeros:Q", format=".1f")],
    )  # fmt: skip
    return alt.layer(wide, high, stairs, dots)


def _against_zeros(board: Board, name: str) -> Chart | None:
    """Worst case against zero weights, a line a method, with the band from the lowest to the highest seed."""
    rows = [
        {
            "method": sparse_method(e.methods), "training": division_of(e.methods, e.row), "run": str(e.row["run"]),
            "x": e.row["weight_sparsity"], "y": e.row["worst"],
        }
        for e in board.entries
        if "weight_sparsity" in e.row and "worst" in e.row
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    if table.empty or (table["x"] > 1).sum() < 3:
        return None
    groups = table.groupby(["training", "method", "run"], sort=False)
    means = groups.agg(
        x=("x", "mean"), y=("y", "mean"), lo=("y", "min"), hi=("y", "max"), seeds=("y", "size")
    )
    data = [{**r, "run": printable(r["run"])} for r in means.reset_index().to_dict("records")]

    import altair as alt

    base = alt.Chart(alt.InlineData(data)).encode(
        x=alt.X("x:Q", title="zero weights in percent", scale=alt.Scale(zero=False)),
        color=alt.Color(
            "method:N", scale=alt.Scale(scheme="tableau20"), legend=alt.Legend(columns=1, symbolLimit=24)
        ),
    )
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("lo:Q", title="worst case in percent"), y2="hi:Q")
    line = base.mark_line(point=alt.OverlayMarkDef(size=45)).encode(
        y="y:Q",
        strokeDash=alt.StrokeDash(
            "training:N", scale=alt.Scale(domain=[*DASHES], range=[*DASHES.values()]), legend=None
        ),
        detail="training:N",
        tooltip=["run:N", "method:N", "training:N", alt.Tooltip("x:Q", format=".1f"), alt.Tooltip("y:Q", format=".1f"),
                 "seeds:Q"],
    )  # fmt: skip
    bands = band.encode(detail="training:N")
    return Chart(
        id=name,
        title="Worst case against zeros, by method",
        about="The mean over the seeds, and the band from the lowest to the highest of them. Full lines: adversarial "
        "training; dashed: natural training; dotted: another defense.",
        spec=_spec(alt.layer(bands, line)),
    )


def _against_eps(board: Board, name: str) -> Chart | None:
    """Accuracy at every radius, from an attack that seeks the smallest perturbation; of the first seed."""
    rows: list[dict[str, Any]] = []
    attack, drawn = "", 0
    for entry in board.entries:
        if entry.folder is None or not entry.manifest or drawn == MOST_CURVES:
            continue
        for label in [attack] if attack else entry.manifest["attacks"]:
            try:
                found = curves.curve(entry.folder, label)
            except UserError:
                continue
            attack, drawn = label, drawn + 1
            run = f"{printable(entry.row['run'])} (seed {entry.row['seed']})"
            rows += [{"run": run, **{str(k): v for k, v in r.items()}} for r in found.to_dict("records")]
            break
    if not rows:
        return None
    reach = max(r["eps"] for r in rows)

    import altair as alt

    base = alt.Chart(alt.InlineData(rows)).encode(
        x=alt.X("eps:Q", title=f"eps ({board.entries[0].norm})", scale=alt.Scale(domain=[0, reach])),
        color=alt.Color("run:N", scale=alt.Scale(range=COLOURS)),
    )
    band = base.mark_area(opacity=0.15).encode(
        y=alt.Y("lo:Q", title="accuracy in percent", scale=alt.Scale(domain=[0, 100])), y2="hi:Q"
    )
    line = base.mark_line().encode(
        y="accuracy:Q",
        strokeDash=alt.StrokeDash("run:N", legend=None),
        tooltip=["run:N", "eps:Q", "accuracy:Q"],
    )
    return Chart(
        id=name,
        title=f"Accuracy against eps, under {printable(attack)}",
        about="From the smallest perturbation that this attack found for each image, with its 95 % interval: an upper "
        "bound at every radius. Networks that draw noise look better than they are where an attack stops at the "
        "boundary.",
        spec=_spec(alt.layer(band, line)),
    )


def _histories(board: Board, name: str) -> Chart | None:
    """Validation accuracy and non-zero weights after every epoch, over the seeds of a run."""
    home = next((e.home for e in board.entries if e.home is not None), None)
    if home is None:
        return None
    try:
        table = histories.over_seeds(histories.collect(home))
    except UserError:
        return None
    shown = [c for c in ("val_accuracy", "val_mse", "nonzero") if f"{c}_mean" in table]
    runs = list(dict.fromkeys(table["run"]))[:MOST_CURVES]
    rows = []
    for run in runs:
        mine = table[table["run"] == run]
        for _, line in mine.iloc[:: max(1, math.ceil(len(mine) / MOST_EPOCHS))].iterrows():
            for column in shown:
                mean, std = float(line[f"{column}_mean"]), float(line[f"{column}_std"])
                if math.isfinite(mean):
                    band = std if math.isfinite(std) else 0.0
                    rows.append({"run": printable(run), "epoch": int(line["passed"]), "what": _TITLES[column],
                                 "y": mean, "lo": mean - band, "hi": mean + band})  # fmt: skip
    if not rows:
        return None

    import altair as alt

    base = alt.Chart(alt.InlineData(rows)).encode(
        x=alt.X("epoch:Q", title="epochs passed"), color=alt.Color("run:N", scale=alt.Scale(range=COLOURS))
    )
    band_ = base.mark_area(opacity=0.15).encode(y=alt.Y("lo:Q", title=None), y2="hi:Q")
    line_ = base.mark_line().encode(
        y=alt.Y("y:Q", title=None),
        strokeDash=alt.StrokeDash("run:N", legend=None),
        tooltip=["run:N", "epoch:Q", "y:Q"],
    )
    panels = alt.layer(band_, line_).properties(width=WIDTH // 2 - 20, height=HEIGHT - 60)
    faceted = panels.facet(alt.Facet("what:N", title=None), columns=2).resolve_scale(y="independent")
    return Chart(
        id=name,
        title="Trainings, epoch by epoch",
        about="Means over the seeds, with one standard deviation. Layer by layer: on a run's page.",
        spec=_spec(faceted, sized=True),
    )


_TITLES = {
    "val_accuracy": "validation accuracy in %",
    "val_mse": "validation squared error",
    "nonzero": "non-zero weights in %",
}


def _spec(chart: Any, sized: bool = False) -> Spec:
    """Vega-Lite's specification, with what all charts share and without the colours of a page."""
    if not sized:
        chart = chart.properties(width=WIDTH, height=HEIGHT)
    spec: Spec = chart.to_dict()
    spec.pop("$schema", None)  # an address that nothing needs
    spec["config"] = {
        "background": None,
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "legend": {"labelLimit": 280, "symbolOpacity": 1},
    }
    return spec


def drawn(spec: Spec) -> str:
    """A chart as SVG that needs no script, on white."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg({**spec, "background": "white"})
    return svg


def bundle() -> str:
    """Vega, Vega-Lite and their embedding as one script, as the package has them: nothing is fetched."""
    import vl_convert

    script: str = vl_convert.javascript_bundle(snippet=None)  # type: ignore[arg-type]  # its stub has no default
    return script
