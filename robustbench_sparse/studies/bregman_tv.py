"""Bregman iterations of total variation: details come back from coarse to fine, the noise at last.

Roith, thesis, example 1.18 and figure 1.2; Osher, Burger, Goldfarb, Xu, Yin 2005,
https://doi.org/10.1137/040605412.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from attacks.base import check
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.foundation.streams import derive
from robustbench_sparse.reporting.figures.style import COLOURS
from robustbench_sparse.studies.base import Array, Result, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST = 1024  # pixels, of an image's side


@dataclass(frozen=True, kw_only=True)
class BregmanTV(Study):
    """An image denoised by Bregman iterations of total variation, from a constant image back to the noisy one.

    With L(u) = ||u - f||^2 / 2 and J = TV, from p_0 = 0 (Roith (1.14)):

        u_(k+1) = argmin_u TV(u) - <p_k, u> + tau L(u),  p_(k+1) = p_k - tau (u_(k+1) - f).

    With p_k = tau v_k that is u_(k+1) = prox_(TV / tau)(f + v_k), v_(k+1) = v_k + f - u_(k+1): denoising by TV of f and
    the residual added back (Osher et al. 2005). The map is scikit-image's ``denoise_tv_chambolle``.

    Iterates come closer to f for ever, to the clean image only at first. The discrepancy principle stops at the first k
    with ||u_k - f|| <= ||noise||; until then the Bregman distance to the clean image falls.

    Args:
        image: a file of an image, taken in grey; by default discs, boxes and a ramp drawn from the seed.
        size: side of the drawn image in pixels, in [8, 1024].
        noise: standard deviation of the Gaussian noise, in units of the pixel range, > 0.
        tau: step size, > 0. TV is weighted by 1 / tau: the smaller tau, the coarser the first iterates.
        iterations: of Bregman, in [1, 10000].
        inner: iterations of Chambolle's method for each, in [1, 10^6]; the larger the image and the smaller tau, the
            more it takes: the table's ``gap`` says what is missing.
    """

    published: ClassVar[str] = "Roith, thesis, example 1.18 and figure 1.2"

    image: str | None = None
    size: int = 64
    noise: float = 0.1
    tau: float = 0.5
    iterations: int = 40
    inner: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        check(8 <= self.size <= LARGEST, "size", f"an integer in [8, {LARGEST}]", self.size)
        check(0 < self.noise < math.inf, "noise", "a finite number > 0", self.noise)
        check(0 < self.tau < math.inf, "tau", "a finite number > 0", self.tau)
        check(1 <= self.iterations <= 10_000, "iterations", "an integer in [1, 10000]", self.iterations)
        check(1 <= self.inner <= 10**6, "inner", "an integer in [1, 10^6]", self.inner)

    def run(self, show: Progress) -> BregmanTVResult:
        """Denoise."""
        check_prox()
        clean = drawn(self.size, self.seed) if self.image is None else read(Path(self.image))
        random = np.random.default_rng(derive(self.seed, "bregman_tv/noise"))
        noisy = clean + self.noise * random.standard_normal(clean.shape)
        task = show.start("bregman_tv", self.iterations, "iterations")
        iterates, subgradients = [np.full_like(noisy, noisy.mean())], [np.zeros_like(noisy)]
        for _ in range(self.iterations):
            u, p = step(noisy, subgradients[-1], self.tau, self.inner)
            iterates.append(u)
            subgradients.append(p)
            task.advance(1)
        task.close()
        return BregmanTVResult(clean, noisy, iterates, subgradients, self.seed)


def step(noisy: Array, p: Array, tau: float, inner: int) -> tuple[Array, Array]:
    """One Bregman iteration: from p_k to u_(k+1) and p_(k+1), all (H, W)."""
    added = noisy + p / tau
    u = prox_tv(added, 1 / tau, inner)
    return u, tau * (added - u)


def prox_tv(image: Array, weight: float, inner: int) -> Array:
    """argmin_u weight TV(u) + ||u - image||^2 / 2 by Chambolle's method; (H, W) -> (H, W)."""
    from skimage.restoration import denoise_tv_chambolle

    # At eps 0 it goes on to the last iteration: the library's test also stops where the energy pauses.
    u: Array = denoise_tv_chambolle(image, weight=weight, eps=0, max_num_iter=inner)
    return u


def total_variation(u: Array) -> float:
    """The sum of sqrt(|u_(i+1,j) - u_(i,j)|^2 + |u_(i,j+1) - u_(i,j)|^2), differences across the border 0; (H, W)."""
    down = np.diff(u, axis=0, append=u[-1:])
    right = np.diff(u, axis=1, append=u[:, -1:])
    return float(np.hypot(down, right).sum())


def check_prox() -> None:
    """UserError without the library of the proximal map."""
    try:
        import skimage.restoration  # noqa: F401
    except ImportError:
        raise UserError(
            "study bregman_tv: needs scikit-image, which comes with the extra 'studies' of robustbench_sparse"
        ) from None


def drawn(size: int, seed: int) -> Array:
    """Boxes, discs and a ramp in [0, 1] on a dark ground, large and small; (size, size)."""
    random = np.random.default_rng(derive(seed, "bregman_tv/image"))
    y, x = np.mgrid[0:size, 0:size] / size
    image = np.full((size, size), 0.1)
    image[:, int(0.75 * size) :] = 0.1 + 0.4 * y[:, int(0.75 * size) :]  # the ramp
    for extent in (0.5, 0.3, 0.2, 0.12, 0.08, 0.05):
        left, top = random.uniform(0, 1 - extent, 2)
        image[(x >= left) & (x < left + extent) & (y >= top) & (y < top + extent)] = random.uniform(0.3, 1)
        centre_x, centre_y = random.uniform(extent / 2, 1 - extent / 2, 2)
        image[(x - centre_x) ** 2 + (y - centre_y) ** 2 < (extent / 2) ** 2] = random.uniform(0.3, 1)
    return image


def read(path: Path) -> Array:
    """An image file in grey, in [0, 1]; (H, W). UserError where it cannot be read, or is too small or too large."""
    from PIL import Image

    if not path.is_file():
        raise UserError(f"image: {path}: {'no regular' if path.exists() else 'no such'} file")
    try:
        with Image.open(path) as file:
            width, height = file.size
            if not (2 <= width <= LARGEST and 2 <= height <= LARGEST):
                raise UserError(
                    f"image: {path}: expected sides of 2 to {LARGEST} pixels, got {width} x {height}"
                )
            return np.asarray(file.convert("L"), dtype=np.float64) / 255
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise UserError(f"image: {path}: not a readable image: {one_line(e)[:200]}") from None


class BregmanTVResult(Result):
    """All iterates u_0 to u_K with their subgradients, and what is measured of them."""

    def __init__(
        self, clean: Array, noisy: Array, iterates: list[Array], subgradients: list[Array], seed: int
    ) -> None:
        self.clean, self.noisy, self.iterates = clean, noisy, iterates
        self.noise_norm = float(np.linalg.norm(noisy - clean))
        self._table: pd.DataFrame = pd.DataFrame([
            {
                "k": k,
                "seed": seed,
                "residual": float(np.linalg.norm(u - noisy)),
                "error": float(np.linalg.norm(u - clean)),
                "total_variation": total_variation(u),
                "bregman_distance": total_variation(clean) - total_variation(u) - float((p * (clean - u)).sum()),
                # Chambolle's p is feasible for the dual of TV, so this is the duality gap: never negative.
                "gap": total_variation(u) - float((p * u).sum()),
                "noise_norm": self.noise_norm,
            }
            for k, (u, p) in enumerate(zip(iterates, subgradients, strict=True))
        ])  # fmt: skip

    @property
    def table(self) -> pd.DataFrame:
        """A row per iterate.

        Columns: ``k``, 0 for the constant image; ``seed``; ``residual`` ||u_k - f||; ``error`` ||u_k - u||, u the clean
        image; ``total_variation`` of u_k; ``bregman_distance`` TV(u) - TV(u_k) - <p_k, u - u_k>;
        ``gap`` TV(u_k) - <p_k, u_k>, 0 where p_k is a subgradient at u_k, else by how much the map was missed;
        ``noise_norm`` ||f - u||.
        """
        return self._table

    @property
    def best(self) -> int:
        """The k of the smallest error."""
        return int(self._table["error"].to_numpy().argmin())

    @property
    def stopped(self) -> int | None:
        """The first k whose residual is not larger than the noise; None where there is none yet."""
        reached = np.flatnonzero(self._table["residual"].to_numpy() <= self.noise_norm)
        return int(reached[0]) if len(reached) else None

    def lines(self) -> list[str]:
        """The smallest error, and where the discrepancy principle stops."""
        errors = self._table["error"]
        root = math.sqrt(self.clean.size)
        out = [
            f"root mean squared error: noisy {self.noise_norm / root:.5f}, "
            f"smallest {errors[self.best] / root:.5f} at k = {self.best}, "
            f"last {errors.iloc[-1] / root:.5f} at k = {len(errors) - 1}"
        ]
        if self.stopped is None:
            out.append("the discrepancy principle does not stop within these iterations")
        else:
            out.append(
                f"the discrepancy principle stops at k = {self.stopped}: {errors[self.stopped] / root:.5f}"
            )
        return out

    def draw(self, figure: Figure) -> None:
        """The clean and the noisy image, some iterates, and the errors over k."""
        last = len(self.iterates) - 1
        chosen = sorted({min(1, last), max(1, self.best // 3), self.best, (self.best + last) // 2, last})
        pictures = {"clean image u": self.clean, "noisy image f": self.noisy}
        pictures |= {f"u_{k}{' (smallest error)' * (k == self.best)}": self.iterates[k] for k in chosen}
        columns = (len(pictures) + 1) // 2
        figure.set_size_inches(2.6 * columns + 5.2, 5.4)
        places = figure.add_gridspec(2, columns + 2)
        for i, (title, picture) in enumerate(pictures.items()):
            ax = figure.add_subplot(places[i // columns, i % columns])
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(title, fontsize="small")
            ax.set_axis_off()
        ax, k = figure.add_subplot(places[:, columns:]), self._table["k"]
        for number, (column, label) in enumerate({"residual": "||u_k - f||", "error": "||u_k - u||"}.items()):
            ax.plot(k, self._table[column], color=COLOURS[number], label=label)
        ax.axhline(self.noise_norm, color="black", linewidth=0.8, linestyle="--", label="||noise||")
        ax.plot(self.best, self._table["error"][self.best], "o", color=COLOURS[1], label="smallest error")
        if self.stopped is not None:
            ax.axvline(
                self.stopped, color="black", linewidth=0.8, linestyle=":", label="discrepancy principle"
            )
        ax.set(xlabel="k", ylim=(0, None))
        ax.legend(fontsize="small")
