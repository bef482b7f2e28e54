"""Skip connections; Bungert et al. 2021 (BREG-II, arXiv:2106.02479), figures 3 (bottom) and 4."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.figures.base import Drawing
from robustbench_sparse.reporting.figures.finding import by_row
from robustbench_sparse.reporting.figures.networks import Array, Layer, layers_of, state_of
from robustbench_sparse.reporting.figures.style import (
    ZERO,
    largest,
    layer_ticks,
    mark_zeros,
    panels,
    show_signed,
)
from robustbench_sparse.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WRITTEN = 10  # rows of a matrix, up to which its values stand in it


@dataclass(frozen=True, kw_only=True)
class Skips(Drawing):
    """How strongly each layer reads the earlier ones, averaged over the seeds: a matrix per row of the benchmark.

    Of a dense residual network the skips tau^{l,i} from x^i to x^{l+1}, negative in red, positive in blue. Of a dense
    block the Frobenius norms of all kernels K^{l,i,j}, and their sums tau^{l,r} over the channels that layer r made (0:
    the block's input) and those that layer l makes; the last layer is the convolution behind the block. What is exactly
    zero in all runs has a colour of its own.
    """

    published: ClassVar[str] = "Bungert et al. 2021 (BREG-II), figures 3 (bottom) and 4"
    most: ClassVar[int] = 10_000

    def draw(self, figure: Figure, runs: Sequence[RunFolder]) -> None:
        """A panel per row with skips, two per dense block."""
        signed, norms, sums = {}, {}, {}
        for title, seeds in by_row(runs).items():
            over = f"{title} (mean of {len(seeds)} runs)" if len(seeds) > 1 else title
            if has_skips(state_of(seeds[0])):
                signed[over] = averaged([skip_matrix(state_of(run), run) for run in seeds], seeds)
                continue
            for number, block in enumerate(_blocks_of(seeds), 1):
                name = f"{over}, block {number}" if number > 1 else over
                norms[f"{name}\nnorms of kernels"] = averaged([kernel_norms(b) for b in block], seeds)
                sums[f"{name}\nsums over layers"] = averaged([summed_norms(b) for b in block], seeds)
        every = [*signed, *(pair for two in zip(norms, sums, strict=True) for pair in two)]
        axes = panels(figure, len(every), (4.8, 4.4), columns=2 if norms else 3)
        reach = largest([*signed.values()])
        for ax, title in zip(axes, every, strict=True):
            ax.set_title(title, fontsize="medium")
            if title in signed:
                drawn = show_signed(ax, signed[title], reach)
                _layers(ax, signed[title], reach)
                figure.colorbar(drawn, ax=ax, label="skip parameter tau", shrink=0.8)
            else:
                _draw_norms(figure, ax, {**norms, **sums}[title], per_channel=title in norms)
        mark_zeros(figure, "exactly zero")


# Skip parameters -----------------------------------------------------------------------------------------

_PART = re.compile(r"(.*\.)?layers\.(\d+)\.(linear\.weight|skip)")


def has_skips(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors are those of a dense residual network."""
    parts = [_PART.fullmatch(name) for name in state]
    return any(part[3] == "skip" for part in parts if part)


def skip_matrix(state: Mapping[str, Tensor], run: RunFolder) -> Array:
    """tau^{l,i} in row l and column i, (L, L), from the tensors of a network; nan where there is no such skip.

    The skips of layer l belong to those x^0 to x^l that are as wide as its output; of several networks in one, such as
    an ensemble, the mean is taken.

    Raises:
        UserError: skips that do not fit the layers' widths.
    """
    found: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, tensor in state.items():
        part = _PART.fullmatch(name)
        if part:
            found.setdefault(part[1] or "", {})[int(part[2]), part[3]] = tensor
    try:
        matrices = [_matrix_of(parts) for parts in found.values()]
    except (KeyError, ValueError, IndexError):
        raise UserError(f"{run.path}: its skip parameters do not fit its layers") from None
    return averaged(matrices, [run] * len(matrices))


def _matrix_of(parts: Mapping[tuple[int, str], Tensor]) -> Array:
    count = 1 + max(number for number, _ in parts)
    linear = [parts[number, "linear.weight"] for number in range(count)]
    widths = [linear[0].shape[1], *(len(w) for w in linear)]
    matrix = np.full((count, count), np.nan)
    for (number, kind), tensor in parts.items():
        if kind == "skip":
            sources = [i for i in range(number + 1) if widths[i] == widths[number + 1]]
            if len(sources) != len(tensor):
                raise ValueError(number)
            matrix[number, sources] = tensor.double().numpy()
    return matrix


def averaged(matrices: Sequence[Array], runs: Sequence[RunFolder]) -> Array:
    """The mean of matrices of one shape; UserError where the runs' are not alike."""
    if any(m.shape != matrices[0].shape for m in matrices):
        raise UserError(
            f"{runs[0].path.parent}: the runs of {runs[0].label} have not as many layers and skips"
        )
    mean: Array = np.mean(matrices, axis=0)
    return mean


# Dense blocks --------------------------------------------------------------------------------------------


def _blocks_of(runs: Sequence[RunFolder]) -> list[tuple[list[Layer], ...]]:
    """Each dense block in all of the runs; UserError where a run has none."""
    blocks = []
    for run in runs:
        found = dense_blocks(layers_of(run))
        if not found:
            raise UserError(
                f"{run.path}: its network has neither skip parameters nor a dense block: take a run of the model "
                "dense_residual or densenet"
            )
        blocks.append(found)
    if any(len(b) != len(blocks[0]) for b in blocks):
        raise UserError(f"{runs[0].path.parent}: the runs of {runs[0].label} have not as many dense blocks")
    return list(zip(*blocks, strict=True))


def dense_blocks(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Convolutions that each add k channels and read all that were there before; the last one only reads them."""
    blocks: list[list[Layer]] = []
    for layer in layers:
        if not layer.is_convolution or layer.groups != 1:
            continue
        last = blocks[-1][-1] if blocks else None
        if last is not None and layer.weight.shape[1] == last.weight.shape[1] + len(last.weight):
            blocks[-1].append(layer)
        else:
            blocks.append([layer])
    grown = [block for block in blocks if len({len(layer.weight) for layer in block[:-1]}) == 1]
    return [block for block in grown if len(block) > 1]


def kernel_norms(block: Sequence[Layer]) -> Array:
    """Frobenius norm of every kernel: (channels made, channels read), over all layers; nan where none is read."""
    widest = block[-1].weight.shape[1]
    rows = []
    for layer in block:
        out, inputs = layer.weight.shape[:2]
        row = np.full((out, widest), np.nan)
        row[:, :inputs] = np.sqrt(np.square(layer.weight.reshape(out, inputs, -1)).sum(axis=2))
        rows.append(row)
    return np.concatenate(rows)


def summed_norms(block: Sequence[Layer]) -> Array:
    """tau^{l,r}, the sum of the kernels' norms from what layer r made to what layer l makes; section 4.2.

    Row l - 1 is the block's layer l, the last row what stands behind the block; column 0 is the block's input, column r
    the channels that layer r made; nan where layer r comes later.
    """
    norms, inputs = kernel_norms(block), block[0].weight.shape[1]
    made = np.cumsum([0, *(len(layer.weight) for layer in block)])
    read = [0, *(inputs + made[: len(block)])]
    out = np.full((len(block), len(block)), np.nan)
    for layer in range(len(block)):
        for r in range(layer + 1):
            out[layer, r] = norms[made[layer] : made[layer + 1], read[r] : read[r + 1]].sum()
    return out


# Drawing -------------------------------------------------------------------------------------------------


def _draw_norms(figure: Figure, ax: Axes, values: Array, *, per_channel: bool) -> None:
    from matplotlib import colormaps

    colours = colormaps["viridis_r"].with_extremes(bad="white", under=ZERO)
    # Zeros lie below the scale's lowest value, which no other norm does.
    least = float(np.nanmin(values[values > 0])) if (values > 0).any() else 1.0
    most = max(largest([values]), least)
    picture = np.ma.masked_invalid(values)
    drawn = ax.imshow(
        picture, cmap=colours, vmin=min(least, most / 2), vmax=most, interpolation="nearest", aspect="auto"
    )
    if per_channel:
        ax.set(xlabel="channel read", ylabel="channel made")
    else:
        _layers(ax, values, most)
    figure.colorbar(drawn, ax=ax, label="norm of a kernel" if per_channel else "tau", shrink=0.8)


def _layers(ax: Axes, values: Array, reach: float) -> None:
    """Axes numbered by layers, with the values written where there are few; ``reach`` ends the colour scale."""
    place = np.arange(len(values))
    layer_ticks(ax, place)
    ax.set_yticks(ax.get_xticks(), [str(int(i) + 1) for i in ax.get_xticks()])
    ax.set(xlabel="from layer (0: the input)", ylabel="to layer")
    if len(values) <= _WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "white" if abs(value) > 0.6 * reach else "black"
                look: dict[str, Any] = {
                    "ha": "center",
                    "va": "center",
                    "fontsize": "x-small",
                    "color": colour,
                }
                ax.text(column, row, f"{value:.2g}", **look)
