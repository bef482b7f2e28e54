"""Dense twins: beside a row with zeros a thinner dense network of as many weights, trained alike.

What a sparse network is worth shows beside a dense one of equal size. A twin's widths are known before anything trains:
its weights are as many as the methods of its row are asked to leave, or as the file says. Its id depends on the widths
alone, like that of any row with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import nn

from defenses.base import Asked, Defense, prunable
from robustbench_sparse.config.optimizer_base import OptimizerSpec
from robustbench_sparse.config.plan import DenseTwin, Plan, RunPlan, StagePlan
from robustbench_sparse.config.schema import BenchmarkConfig, Entry, TwinConfig
from robustbench_sparse.foundation.errors import UserError, near, one_line, shown
from robustbench_sparse.models.base import ModelSpec
from robustbench_sparse.models.build import build_network
from robustbench_sparse.models.thinner import thinner

Error = Callable[[Sequence[str | int], str], UserError]  # of a key path and a problem


def asked(label: str, config: BenchmarkConfig, error: Error) -> DenseTwin:
    """What the file says of a row with ``dense_twin``.

    Raises:
        UserError: another network or defenses beside it, an unknown row, or one that is a twin itself.
    """
    own, path = config.runs[label], ("runs", label)
    assert own.dense_twin is not None
    for key, given in (("model", own.model), ("defenses", own.defenses)):
        if given:
            raise error(
                (*path, key), f"expected none beside dense_twin: the row's own are taken, got {shown(given)}"
            )
    twin = TwinConfig(row=own.dense_twin) if isinstance(own.dense_twin, str) else own.dense_twin
    at = (*path, "dense_twin") if isinstance(own.dense_twin, str) else (*path, "dense_twin", "row")
    rows = [other for other, run in config.runs.items() if run.dense_twin is None]
    if twin.row in config.runs and twin.row not in rows:
        raise error(at, f"expected a row that is no twin itself, got {shown(twin.row)}")
    if twin.row not in rows:
        raise error(at, f"expected one of {', '.join(rows)}, got {shown(twin.row)}{near(twin.row, rows)}")
    return DenseTwin(of=twin.row, sparsity=twin.sparsity)


def check_row(label: str, sparse: RunPlan, error: Error) -> None:
    """UserError unless a row leaves zeros and its network can be made thinner."""
    path = ("runs", label, "dense_twin")
    if not sparse.sparsifies:
        raise error(path, f"expected a row whose network becomes sparse, got {shown(sparse.label)}")
    if not sparse.model.thins:
        raise error(path, f"expected a row with a network that can be made thinner, got {sparse.model_name}")


def dense_stages(
    run: RunPlan, optimizer: Entry, build: Callable[[], OptimizerSpec], error: Error
) -> list[StagePlan]:
    """A twin's stages: where the optimizer makes weights zero, the file's own takes its place.

    Args:
        run: the twin.
        optimizer: the entry under ``train.optimizer`` at the top of the file.
        build: builds it.
        error: makes an error.

    Raises:
        UserError: that one makes them zero, too.
    """
    out: list[StagePlan] = []
    for stage in run.stages:
        if stage.optimizer.sparsifies:
            dense = build()
            if dense.sparsifies:
                raise error(
                    ("runs", run.label, "train", "optimizer"),
                    f"expected an optimizer for the dense twin: {optimizer['name']} makes weights zero",
                )
            config = stage.config.model_copy(update={"optimizer": optimizer})
            stage = dataclasses.replace(stage, config=config, optimizer=dense)
        out.append(stage)
    return out


def with_widths(plan: Plan, channels: int, size: int, classes: int) -> Plan:
    """The plan with its dense twins thinned, now that the images are known; one without twins as it is.

    Args:
        plan: the checked config.
        channels, size, classes: of the data set's images.

    Raises:
        UserError: a row for which no share of weights is asked, or which leaves fewer than any twin has.
    """
    by_label = {run.label: run for run in plan.runs}
    images = channels, size, classes
    runs = [run if run.twin is None else _thinned(run, by_label[run.twin.of], images) for run in plan.runs]
    return dataclasses.replace(plan, runs=runs)


def _thinned(run: RunPlan, sparse: RunPlan, images: tuple[int, int, int]) -> RunPlan:
    assert run.twin is not None
    try:
        left = _left(sparse, run.twin.sparsity, images)
        model = thinner(sparse.model, left, lambda spec: sum(_weights(run, spec, images).values()))
        weights = sum(_weights(run, model, images).values())
    except (ValueError, RuntimeError, OverflowError, MemoryError) as e:  # such as too many weights
        raise UserError(f"runs.{run.label}.dense_twin: {one_line(e)}") from None
    twin = dataclasses.replace(run.twin, left=left, weights=weights)
    return dataclasses.replace(run, model=model, twin=twin)


def _weights(run: RunPlan, spec: ModelSpec, images: tuple[int, int, int]) -> dict[str, int]:
    """How many weights each convolution and linear layer of a row's network has, by name."""
    return _sizes(_network(run, spec, images)[0])


def _sizes(model: nn.Module) -> dict[str, int]:
    return {name: w.numel() for name, w in prunable(model).items()}


def _network(run: RunPlan, spec: ModelSpec, images: tuple[int, int, int]) -> tuple[nn.Module, list[Defense]]:
    """A row's network, its weights on "meta", and the defenses it was built with."""
    channels, size, classes = images
    with torch.device("meta"):
        defenses = [d.build() for d in run.defenses]
        return build_network(spec, defenses, channels, size, run.task.classes(classes), 0), defenses


def _left(sparse: RunPlan, sparsity: float | None, images: tuple[int, int, int]) -> int:
    """Weights that a row's network is to have left."""
    model, defenses = _network(sparse, sparse.model, images)
    sizes = _sizes(model)
    if sparsity is not None:
        return sum(sizes.values()) - round(sum(sizes.values()) * sparsity / 100)
    with torch.device("meta"):
        every = [found for d in defenses if (found := d.asked(model)) is not None and found.kind == "weight"]
    # What is projected is met whatever another method steered for.
    chosen = [a for a in every if a.binding] or every
    if not chosen:
        raise ValueError(
            f"what {sparse.label} leaves is known only once it is trained: expected its share of zero weights, as in "
            f"{{row: {sparse.label}, sparsity: 90}}"
        )
    return sum(sizes.values()) - round(sum(n * _share(name, chosen) for name, n in sizes.items()))


def _share(name: str, every: Sequence[Asked]) -> float:
    """The largest share of zeros asked of a weight, in [0, 1]."""
    return max((a.percent / 100 for a in every if name in a.names), default=0.0)
