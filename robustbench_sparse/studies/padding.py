"""One filter on images of several resolutions, with its kernel padded in space or in frequency.

Roith, thesis, 1.4.1 and figure 1.3; Kabri, Roith, Tenbrinck, Burger 2023, figure 1, https://arxiv.org/abs/2304.01227.
They show a photograph and a kernel of their own; ours are settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from attacks.base import check
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.models.spectral import (
    centred,
    circular_convolution,
    spectral_convolution,
    to_frequency,
    trigonometric,
)
from robustbench_sparse.reporting.figures.style import panels
from robustbench_sparse.studies.base import Result, Study, check_all
from robustbench_sparse.studies.bregman_tv import LARGEST, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Filter = Literal["edges", "blur"]
PADDINGS = ("spatial", "spectral")


@dataclass(frozen=True, kw_only=True)
class Padding(Study):
    """A kernel with as many pixels as the coarsest image, on finer ones: zeros around it, or zeros as frequencies.

    With zeros in space it covers a smaller part of a finer image and does something else to it; with zeros in frequency
    it is the same filter at every resolution (corollary 1.31). Images are one photograph, interpolated by
    trigonometric polynomials. What the filter made of each is brought to the coarsest grid and held against what it
    made of the image there.

    Kernels stand around a pixel, where the thesis lets them begin at it: both ways, what comes out is the same but for
    where it stands.

    Args:
        image: a file of an image, of which the square in the middle is taken in grey; by default a photograph that
            comes with scikit-learn.
        sizes: sides of the images in pixels, growing, in [3, 1024]; the first, which is the kernel's, odd.
        filter: ``edges``, the derivative of a Gaussian from left to right; or ``blur``, a Gaussian.
        sigma: the Gaussian's standard deviation in pixels of the coarsest image, > 0.
    """

    published: ClassVar[str] = "Roith, thesis, figure 1.3; Kabri et al. 2023 (arXiv:2304.01227), figure 1"

    image: str | None = None
    sizes: tuple[int, ...] = (33, 66, 132)
    filter: Filter = "edges"
    sigma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fine = [3 <= size <= LARGEST for size in self.sizes]
        check_all(self.sizes, "sizes", f"integers in [3, {LARGEST}]", fine)
        check(list(self.sizes) == sorted(self.sizes), "sizes", "growing sizes", self.sizes)
        check(self.sizes[0] % 2 == 1, "sizes", "an odd size first", self.sizes[0])
        check(self.filter in get_args(Filter), "filter", " or ".join(get_args(Filter)), self.filter)
        check(0 < self.sigma < math.inf, "sigma", "a finite number > 0", self.sigma)

    def run(self, show: Progress) -> PaddingResult:
        """Filter every image both ways."""
        photo = photograph() if self.image is None else torch.from_numpy(read(Path(self.image)))
        finest = trigonometric(square(photo)[None, None], self.sizes[-1])
        weight = kernel(self.sizes[0], self.sigma, self.filter)[None, None]
        pictures: dict[tuple[int, str], Tensor] = {}
        task = show.start("padding", len(self.sizes), "sizes")
        for size in self.sizes:
            v = trigonometric(finest, size)
            pictures[size, "image"] = v[0, 0]
            pictures[size, "spatial"] = circular_convolution(centred(weight, size), v)[0, 0]
            theta_hat = to_frequency(centred(weight, self.sizes[0]))
            pictures[size, "spectral"] = spectral_convolution(theta_hat, v)[0, 0]
            task.advance(1)
        task.close()
        return PaddingResult(pictures, self)


def photograph() -> Tensor:
    """A photograph in grey, in [0, 1], (427, 640), float64: ``china.jpg`` of scikit-learn."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image

    grey = Image.fromarray(load_sample_image("china.jpg")).convert("L")
    return torch.from_numpy(np.asarray(grey, dtype=np.float64) / 255)


def square(image: Tensor) -> Tensor:
    """The largest square in the middle of an image (H, W)."""
    side = min(image.shape)
    top, left = ((length - side) // 2 for length in image.shape)
    return image[top : top + side, left : left + side]


def kernel(side: int, sigma: float, kind: Filter) -> Tensor:
    """A Gaussian of sum 1 around the middle pixel, or its derivative across; (side, side), float64."""
    place = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.exp(-(place**2) / (2 * sigma**2))
    line = line / line.sum()
    return line[:, None] * (line if kind == "blur" else line * place / sigma**2)


class PaddingResult(Result):
    """The images, what the filter made of them, and how much that depends on their size."""

    def __init__(self, pictures: dict[tuple[int, str], Tensor], study: Padding) -> None:
        self.pictures, self._study = pictures, study
        coarsest = study.sizes[0]
        rows = []
        for size in study.sizes:
            for padding in PADDINGS:
                first = pictures[coarsest, padding]
                apart = trigonometric(pictures[size, padding], coarsest) - first
                rows.append({
                    "size": size,
                    "padding": padding,
                    "covered": coarsest / size if padding == "spatial" else 1.0,
                    "difference": float(apart.norm() / first.norm()),
                })  # fmt: skip
        self._table: pd.DataFrame = pd.DataFrame(rows)

    @property
    def table(self) -> pd.DataFrame:
        """A row per size and padding.

        Columns: ``size`` in pixels; ``padding``; ``covered``, the share of an image's side that the kernel covers;
        ``difference`` ||(filtered image)^(size -> coarsest) - filtered coarsest image|| / ||the latter||.
        """
        return self._table

    def lines(self) -> list[str]:
        """The differences, size by size."""
        found = self._table.pivot(index="size", columns="padding", values="difference")
        return [
            f"{size} x {size} pixels: differs from {self._study.sizes[0]} x {self._study.sizes[0]} by "
            + ", ".join(f"{100 * row[padding]:.3g} % ({padding} padding)" for padding in PADDINGS)
            for size, row in found.iterrows()
        ]

    def draw(self, figure: Figure) -> None:
        """A row per size: the image, and both filtered ones on one scale."""
        columns = ("image", *PADDINGS)
        places = panels(figure, 3 * len(self._study.sizes), (2.8, 2.9), columns=3)
        filtered = [picture for (_, what), picture in self.pictures.items() if what != "image"]
        low, high = (float(f(torch.stack([f(p) for p in filtered]))) for f in (torch.min, torch.max))
        cells = [(size, what) for size in self._study.sizes for what in columns]
        for ax, (size, what) in zip(places, cells, strict=True):
            bounds = (0.0, 1.0) if what == "image" else (low, high)
            ax.imshow(self.pictures[size, what], cmap="gray", vmin=bounds[0], vmax=bounds[1])
            ax.set_title(
                f"{size} x {size}" if what == "image" else f"{what} padding, {size}", fontsize="small"
            )
            ax.set_axis_off()
