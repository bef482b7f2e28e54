"""A layer's feature maps of one image at several epochs of a training; BREG-I (arXiv:2105.04319), figure 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import fill
from robustbench_sparse.reporting.figures.base import Drawing, check
from robustbench_sparse.reporting.figures.filters import one_layer, sheet
from robustbench_sparse.reporting.figures.finding import as_text, titles
from robustbench_sparse.reporting.figures.networks import (
    Array,
    Layer,
    layers_of,
    moment_text,
    passed,
    snapshots_of,
)
from robustbench_sparse.reporting.figures.style import ZERO, mark_zeros, panels
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.rebuild import architecture, stored_plan
from robustbench_sparse.runs.targets import images_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Features(Drawing):
    """What the filters of a convolution make of one test image, at the epochs that a run kept its network.

    Drawn is the convolution's output, each map in a scale of its own; maps of filters without weights are left empty.
    Epochs are kept by the training setting ``snapshots``.

    Args:
        layer: the convolution's name; by default the first one.
        epochs: networks kept after so many epochs; by default all that were kept.
        first: only so many maps, the first; by default all.
        images: the image's position in the test set, one.
        data_root: folder of the data sets.
    """

    published: ClassVar[str] = "Bungert et al. 2022 (BREG-I), figure 1"
    most: ClassVar[int] = 1

    layer: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    first: int | None = None
    images: tuple[int, ...] = (0,)
    data_root: str | None = None

    def __post_init__(self) -> None:
        check(len(self.layer) <= 1, "layer", "one layer", ", ".join(self.layer))
        check(self.first is None or self.first >= 1, "first", "a whole number >= 1", self.first)
        check(len(self.images) == 1, "images", "one image", self.images)
        check(min(self.images) >= 0, "images", "a number >= 0", self.images[0])

    def draw(self, figure: Figure, runs: Sequence[RunFolder]) -> None:
        """The image, and a panel per network kept."""
        (run,) = runs
        kept, stages = snapshots_of(run, self.epochs), len({stage for stage, _ in run.snapshots()})
        layer = one_layer(layers_of(run), self.layer, run)
        if not layer.is_convolution:
            raise UserError(f"--layer {layer.name}: no convolution, and so without feature maps")
        dataset = load_dataset(stored_plan(run.path).dataset, self.data_root and Path(self.data_root))
        number = self.images[0]
        if number >= len(dataset.test_x):
            raise UserError(f"--images {number}: expected a number below {len(dataset.test_x)}")
        image = dataset.test_x[number : number + 1].float() / 255
        model = architecture(run.path, **images_of(dataset))
        axes = panels(figure, len(kept) + 1, (3.2, 3.5), columns=6)
        shown = image[0].permute(1, 2, 0).squeeze(2).numpy()
        axes[0].imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[0].set_title(f"test image {number}\n", fontsize="small")
        for ax, at in zip(axes[1:], kept, strict=True):
            weights = run.snapshot(*at)
            fill(model, weights, run.path / names.snapshot(*at))
            then = one_layer(layers_of(run, weights), (layer.name,), run)
            maps = maps_of(model, layer, image, run.seed)[: self.first]
            active = then.active()
            self._panel(ax, maps, active[: self.first])
            count = f"{int(active.sum())} of {len(active)} filters active"
            ax.set_title(f"{moment_text(at, stages)}\n{count}", fontsize="small")
        for ax in axes:
            ax.set_axis_off()
        figure.suptitle(f"{titles(runs)[0]}, layer {as_text(layer.name)}", fontsize="medium")
        mark_zeros(figure, "map of a filter without weights")

    def _panel(self, ax: Any, maps: Array, active: Array) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap

        scaled = np.stack(
            [_scaled(m) if on else np.zeros_like(m) for m, on in zip(maps, active, strict=True)]
        )
        off = np.stack([np.full_like(m, float(not on)) for m, on in zip(maps, active, strict=True)])
        empty = sheet(off[:, None])
        picture = np.ma.masked_where(empty != 0, sheet(scaled[:, None]))
        ax.imshow(picture, cmap=colormaps["viridis"].with_extremes(bad="white"), vmin=0, vmax=1)
        grey = ListedColormap([ZERO]).with_extremes(bad="none")
        ax.imshow(np.ma.masked_where(empty != 1, empty), cmap=grey)


def _scaled(values: Array) -> Array:
    """A map with its smallest value at 0 and its largest at 1; all 0.5 where they are equal."""
    low, high = float(values.min()), float(values.max())
    out: Array = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
    return out


def maps_of(model: nn.Module, layer: Layer, image: Tensor, seed: int) -> Array:
    """A layer's output for one image (1, C, H, W), (out, height, width); ``seed`` is the run's."""
    found: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Tensor) -> None:
        found.append(output.detach())

    module = model if layer.name == "(network)" else model.get_submodule(layer.name)
    handle = module.register_forward_hook(keep)
    try:
        passed(model, image, seed)
    finally:
        handle.remove()
    if not found:
        raise UserError(f"--layer {layer.name}: the network does not pass through it")
    maps: Array = found[0][0].double().numpy()
    return maps
