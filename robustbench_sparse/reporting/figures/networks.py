"""What figures read of a run: its weights layer by layer, networks kept on the way, and the course of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from robustbench_sparse.foundation.errors import UserError, near, one_line
from robustbench_sparse.foundation.files import load_weights
from robustbench_sparse.foundation.streams import derive
from robustbench_sparse.foundation.texts import csv_text
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer with a prunable weight.

    Attributes:
        name: its name; ``(network)`` where the network is the layer.
        weight: (out, in / groups), with the kernel's sides behind for a convolution.
        groups: of a convolution; 1 else.
    """

    name: str
    weight: Array
    groups: int = 1

    @property
    def is_convolution(self) -> bool:
        """Whether it has input channels and kernels."""
        return self.weight.ndim > 2

    def channel_norms(self) -> Array:
        """l2 norm of every input channel W[:, g]; (in,). Filters read those of their own group only."""
        out, per_group = self.weight.shape[:2]
        split = self.weight.reshape(self.groups, out // self.groups, per_group, -1)
        norms: Array = np.sqrt(np.square(split).sum(axis=(1, 3))).ravel()
        return norms

    def active(self) -> Array:
        """Whether any weight of each output is not zero; (out,)."""
        rows: Array = (self.weight.reshape(len(self.weight), -1) != 0).any(axis=1)
        return rows

    def kernels(self) -> Array:
        """The weight as (out, in / groups, height, width); of a linear layer 1 x 1."""
        shape = self.weight.shape
        height = {2: 1, 3: 1}.get(len(shape), shape[2] if len(shape) > 3 else 1)
        return self.weight.reshape(*shape[:2], height, -1)


def layers_of(run: RunFolder, weights: Mapping[str, Tensor] | None = None) -> list[Layer]:
    """The prunable layers of a run's deployed network, in its order.

    Args:
        run: trained to its end.
        weights: of a network kept on the way, in place of the one that was chosen.

    Raises:
        UserError: the run has no weights, they have been changed, or no layers.
    """
    if weights is None:
        weights = state_of(run)
    table = course_of(run).drop_duplicates("name", keep="last")
    if table.empty:
        raise UserError(f"{run.path}: its network has no layer with weights")
    found = []
    for name, channels in zip(table["name"], table["channels"], strict=True):
        weight = weights.get(f"{name}.weight" if name else "weight")
        if weight is None or weight.ndim < 2:
            raise UserError(
                f"{run.path}: damaged: {names.LAYERS} names a layer that its weights lack: {name}"
            )
        groups = int(channels) // weight.shape[1] if channels else 1
        found.append(Layer(name=name or "(network)", weight=weight.double().numpy(), groups=groups or 1))
    return found


def state_of(run: RunFolder) -> dict[str, Tensor]:
    """The tensors of a run's deployed network by name; UserError where they are missing or changed."""
    _check_trained_here(run)
    run.check_weights()
    return load_weights(run.weights)


def chosen(layers: Sequence[Layer], wanted: Sequence[str], run: RunFolder) -> list[Layer]:
    """The layers of these names, in that order; all if there are none. UserError for a name that no layer has."""
    by_name = {layer.name: layer for layer in layers}
    for name in wanted:
        if name not in by_name:
            raise UserError(
                f"--layer {name}: no such layer in {run.path.name}{near(name, by_name)}; "
                f"there are: {', '.join(by_name)}"
            )
    return [by_name[name] for name in wanted] if wanted else list(layers)


def course_of(run: RunFolder) -> pd.DataFrame:
    """A run's counts after every epoch, layer by layer, see ``docs/results_format.md``.

    Returns:
        ``layers.csv``, with ``passed`` (epochs passed, over all stages, from 1); without ``channels`` where those were
        not counted yet.

    Raises:
        UserError: not trained to the end, or the file is damaged.
    """
    _check_trained_here(run)
    run.seals.check(names.LAYERS)
    path = run.path / names.LAYERS
    try:
        table: pd.DataFrame = pd.read_csv(path, converters={"name": csv_text})
        table["passed"] = table.groupby(["stage", "epoch"], sort=False).ngroup() + 1
        table["name"] = table["name"].astype(str)
    except pd.errors.EmptyDataError:  # of a network without layers
        empty: pd.DataFrame = pd.DataFrame(columns=["stage", "epoch", "passed", "name", "channels"])
        return empty
    except (KeyError, TypeError, ValueError, OSError) as e:
        raise UserError(f"{path}: damaged: {type(e).__name__}: {one_line(e)[:200]}") from None
    if "channels" not in table:
        table["channels"] = 0
    out: pd.DataFrame = table
    return out


def _check_trained_here(run: RunFolder) -> None:
    if not run.seals.has(names.LAYERS):
        raise UserError(f"{run.path}: no {names.LAYERS}: not trained here to its end")


def passed(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    """What a network makes of images (B, C, H, W), without gradients.

    A random one draws from a stream of its own, so that a figure is always the same.

    Args:
        model: in eval mode.
        x: images.
        seed: the run's.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "figure"))
        out: Tensor = model(x)
    return out


def snapshots_of(run: RunFolder, epochs: Sequence[int] = ()) -> list[tuple[int, int]]:
    """The networks that a run kept on the way: stage, and epochs passed in it.

    Args:
        run: its folder.
        epochs: those after so many epochs, in whatever stage; all if empty.

    Raises:
        UserError: there are none, or none after an epoch that was asked for.
    """
    there = run.snapshots()
    if not there:
        raise UserError(
            f"{run.path}: no networks were kept on the way: set train.snapshots in its config, as in [0, 5, 20], "
            "delete this folder and run it again"
        )
    passed = sorted({p for _, p in there})
    for epoch in epochs:
        if epoch not in passed:
            raise UserError(
                f"--epochs {epoch}: {run.path.name} kept no network then; there are: "
                f"{', '.join(map(str, passed))}; train.snapshots in its config names them"
            )
    return [(stage, p) for stage, p in there if not epochs or p in epochs]


def moment_text(at: tuple[int, int], stages: int) -> str:
    """What a snapshot is called: how many epochs were passed, and in which stage where there are several."""
    stage, passed = at
    when = "at the start" if passed == 0 else f"after {passed} epoch{'s' if passed > 1 else ''}"
    return f"stage {stage + 1}, {when}" if stages > 1 else when
