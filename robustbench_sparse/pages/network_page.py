"""What a run's page shows of its network: layers with histograms, first filters, the course of its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import load_weights
from robustbench_sparse.foundation.texts import printable
from robustbench_sparse.pages.drawings import bars, histogram, lines, signed_png
from robustbench_sparse.reporting.figures.filters import sheet
from robustbench_sparse.reporting.figures.networks import Layer, course_of, layers_of
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_LAYERS, MOST_FILTERS = 24, 64
_SHOWN = ("train_accuracy", "val_accuracy", "weight_sparsity", "channel_sparsity")


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """One layer: its counts, the histogram of its weights that are not zero, and of its channels' norms."""

    name: str
    shape: str
    weights: int
    zeros: int
    values: Markup
    norms: Markup | None


@dataclass(frozen=True, kw_only=True)
class Course:
    """A drawing of what changed from epoch to epoch; ``names`` of its lines, in the order of their colours."""

    title: str
    drawing: Markup
    names: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class NetworkView:
    """Layers, those left out, a PNG of the first layer's filters, and drawings of the training's course."""

    layers: Sequence[LayerView]
    left_out: int
    filters: bytes
    filters_of: str
    courses: Sequence[Course]


def network_view(folder: Path) -> NetworkView:
    """What can be drawn of a run's network.

    Raises:
        UserError: no weights, or they were changed since.
    """
    run = RunFolder.at(folder)
    layers = _layers(run)
    first = next((layer for layer in layers if layer.is_convolution), layers[0] if layers else None)
    picture = b"" if first is None else signed_png(sheet(first.weight[:MOST_FILTERS]))
    return NetworkView(
        layers=[_view(layer) for layer in layers[:MOST_LAYERS]],
        left_out=max(0, len(layers) - MOST_LAYERS),
        filters=picture,
        filters_of="" if first is None else printable(first.name),
        courses=_courses(run),
    )


def _layers(run: RunFolder) -> list[Layer]:
    """The layers in the order of the network; by the names of its tensors where no course of them was kept."""
    if run.seals.has(names.LAYERS):
        return layers_of(run)
    run.check_weights()
    weights = load_weights(run.weights)
    return [
        Layer(name=name.removesuffix("weight").removesuffix(".") or "(network)", weight=w.double().numpy())
        for name, w in weights.items()
        if w.ndim >= 2
    ]


def _view(layer: Layer) -> LayerView:
    flat = layer.weight.ravel()
    name = printable(layer.name)
    norms = layer.channel_norms() if layer.is_convolution else None
    return LayerView(
        name=name,
        shape=" \u00d7 ".join(map(str, layer.weight.shape)),
        weights=flat.size,
        zeros=int((flat == 0).sum()),
        values=bars(*histogram(flat[flat != 0]), f"histogram of the weights of {name} that are not zero"),
        norms=None
        if norms is None or len(norms) < 2
        else bars(*histogram(norms, min(40, len(norms))), f"histogram of the channel norms of {name}"),
    )


def _courses(run: RunFolder) -> list[Course]:
    """Accuracy and zeros after every epoch, and the weights that are left in every layer."""
    found: list[tuple[str, list[tuple[str, list[float]]]]] = []
    if run.seals.holds(names.HISTORY):
        try:
            table: Any = pd.read_csv(run.path / names.HISTORY)
        except (ValueError, OSError) as e:
            raise UserError(f"{run.path / names.HISTORY}: damaged: {one_line(e)}") from None
        kept = [c for c in _SHOWN if c in table]
        series = [(c.replace("_", " "), [float(v) for v in table[c]]) for c in kept]
        found.append(("Accuracy and zeros in percent, epoch by epoch", series))
    if run.seals.has(names.LAYERS):
        course = course_of(run)
        if {"weights", "zero_weights"} <= {*course.columns}:
            course["left"] = 100 * (1 - course["zero_weights"] / np.maximum(course["weights"], 1))
            by_layer = [
                (printable(name), [float(v) for v in mine["left"]])
                for name, mine in list(course.groupby("name", sort=False))[:MOST_LAYERS]
            ]
            found.append(("Weights that are not zero in percent, layer by layer", by_layer))
    return [
        Course(title=title, drawing=lines(series, title), names=[name for name, _ in series])
        for title, series in found
        if series and len(series[0][1]) > 1
    ]
