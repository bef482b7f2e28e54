"""Whether networks, defenses, optimizers and data fit together, found out before anything trains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from attacks.base import Threat
from defenses.base import Defense, Step
from robustbench_sparse.config.plan import RunPlan
from robustbench_sparse.data.bounded import available_memory
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.models.build import build_network, has_weights
from robustbench_sparse.runs.provenance import is_own
from robustbench_sparse.training.helpers import check_handed


def check_runs(runs: Sequence[RunPlan], data: PreparedData, threat: Threat) -> None:
    """Build every network without memory and look at every stage.

    Raises:
        UserError: for the first pair that does not fit, with the run's label.
    """
    for run in runs:
        try:
            defenses, model = _without_memory(run, data)
        except (ValueError, RuntimeError, OverflowError, MemoryError) as e:  # such as too many weights
            raise UserError(f"runs.{run.label}: {one_line(e)}") from None
        _check_batches(run, model, data)
        _check_crops(run, data)
        _check_devices(run, defenses, model, data)
        if not has_weights(model):
            if run.defenses:
                raise UserError(f"runs.{run.label}.defenses: expected none for a network without weights")
            continue
        _check_optimizers(run, model)
        _check_memory(run, model, data)
        _check_stages(run, defenses, model, data, threat)


def _without_memory(run: RunPlan, data: PreparedData) -> tuple[list[Defense], nn.Module]:
    """A run's defenses and its network, on the device "meta"."""
    with torch.device("meta"):
        defenses = [d.build() for d in run.defenses]
        classes = run.task.classes(data.classes)
        return defenses, build_network(run.model, defenses, data.channels, data.size, classes, 0)


def _check_crops(run: RunPlan, data: PreparedData) -> None:
    for stage in run.stages:
        crop = stage.config.augment.crop
        if crop > data.size:
            raise UserError(
                f"runs.{run.label}: augment.crop: expected at most the {data.size} pixels of an image's side, "
                f"got {crop}"
            )


def _check_devices(run: RunPlan, defenses: Sequence[Defense], model: nn.Module, data: PreparedData) -> None:
    """UserError where several processes cannot train this run, or not come to the numbers of one."""
    devices = run.devices
    if devices == 1:
        return
    there = torch.cuda.device_count() if data.device.type == "cuda" else devices
    smallest = min(stage.config.batch_size for stage in run.stages)
    shared = [p.name for p, d in zip(run.defenses, defenses, strict=True) if not _divides(d)]
    problems: dict[str, object] = {
        "the same number in all stages": any(stage.config.devices != devices for stage in run.stages),
        f"at most the {there} GPUs here": devices > there,
        f"at most the {smallest} images of a minibatch": devices > smallest,
        "1 with compile: on": any(stage.config.compile == "on" for stage in run.stages),
        "1 for a network without weights": not has_weights(model),
        "1 where PyTorch was built without torch.distributed": not torch.distributed.is_available(),
        f"1 with {shared[0] if shared else ''}, which does not say that it can work on parts of a minibatch": shared,
    }
    for expected, there_is in problems.items():
        if there_is:
            raise UserError(f"runs.{run.label}: train.devices: expected {expected}, got {devices}")
    check_handed(run)


def _divides(defense: Defense) -> bool:
    return is_own(type(defense)) if defense.divides is None else defense.divides


def _check_optimizers(run: RunPlan, model: nn.Module) -> None:
    """UserError for an optimizer whose settings name parameters that are not there."""
    for stage in run.stages:
        try:
            stage.optimizer.build(model)
        except ValueError as e:
            raise UserError(f"runs.{run.label}: train.optimizer: {one_line(e)}") from None


def _check_memory(run: RunPlan, model: nn.Module, data: PreparedData) -> None:
    """UserError where the largest batch of a training cannot fit into the memory there is; an estimate from below."""
    free = available_memory() if data.device.type == "cpu" else torch.cuda.mem_get_info(data.device)[0]
    if free is None:
        return
    needed = _training_memory(run, model, data)
    if needed > free:
        raise UserError(
            f"runs.{run.label}: needs at least {needed / 1e9:.1f} GB of memory to train with minibatches of "
            f"{_largest_batch(run, data)}, "
            f"and {free / 1e9:.1f} GB are free: expected a smaller network or batch_size"
        )


def _largest_batch(run: RunPlan, data: PreparedData) -> int:
    return max(min(stage.config.batch_size, data.count("train")) for stage in run.stages)


def _training_memory(run: RunPlan, model: nn.Module, data: PreparedData) -> float:
    needed = needed_memory(model, _largest_batch(run, data), data.channels, data.size)
    return needed + max(state_memory(stage.optimizer.build(model)) for stage in run.stages)


def most_memory(runs: Sequence[RunPlan], data: PreparedData) -> float:
    """Bytes that a step of training takes in the largest of these runs, at least; they have passed ``check_runs``."""
    networks = [(run, _without_memory(run, data)[1]) for run in runs]
    return max(
        (_training_memory(run, model, data) for run, model in networks if has_weights(model)), default=0.0
    )


def needed_memory(model: nn.Module, batch: int, channels: int, size: int) -> float:
    """Bytes that a step of training takes at least: weights, gradients, the chosen weights, and what layers give.

    What the optimizer keeps comes on top: ``state_memory``.

    Args:
        model: a network on the device "meta"; it is sent images without numbers.
        batch, channels, size: of the images.
    """
    fixed = 3.0 * sum(p.numel() * p.element_size() for p in model.parameters())
    given = 0.0

    def count(_: nn.Module, __: object, out: object) -> None:
        nonlocal given
        if isinstance(out, torch.Tensor):
            given += out.numel() * out.element_size()

    leaves = [m for m in model.modules() if not len(list(m.children()))]
    handles = [m.register_forward_hook(count) for m in leaves]
    training = model.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.eval()(torch.empty(batch, channels, size, size, device="meta"))
    except KeyboardInterrupt:
        raise
    except BaseException:  # a foreign network may need numbers: its weights alone are counted
        given = 0.0
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return fixed + given


def state_memory(optimizer: torch.optim.Optimizer) -> float:
    """Bytes that an optimizer of parameters on the device "meta" keeps beside them, such as Adam's moments."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        for p in parameters:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    except KeyboardInterrupt:
        raise
    except BaseException:  # a foreign one may need numbers: what it has made so far is counted
        pass
    finally:
        for p in parameters:
            p.grad = None
    kept = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return float(sum(v.numel() * v.element_size() for v in kept))


def _check_batches(run: RunPlan, model: nn.Module, data: PreparedData) -> None:
    if data.count("train") == 0:
        raise UserError(f"runs.{run.label}: expected training images, got a data set with a test part alone")
    for stage in run.stages:
        if stage.config.batch_size > data.count("train"):
            raise UserError(
                f"runs.{run.label}: batch_size: expected at most the {data.count('train')} training images, got "
                f"{stage.config.batch_size}"
            )
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return
    for stage in run.stages:
        batch = stage.config.batch_size
        if data.count("train") % batch == 1:
            raise UserError(
                f"runs.{run.label}: batch_size: an epoch of {data.count('train')} images would end with "
                f"a minibatch of one, which batch-norm cannot train on; expected another than {batch}"
            )


def _check_stages(
    run: RunPlan, defenses: Sequence[Defense], model: nn.Module, data: PreparedData, threat: Threat
) -> None:
    """Ask every defense about the stages it acts in."""
    for number, stage in enumerate(run.stages):
        s = Step(
            model,
            stage.optimizer.build(model),
            threat,
            torch.Generator(),
            data.images,
            stage=number,
            epochs=stage.config.epochs,
            steps_per_epoch=data.steps_per_epoch(stage.config.batch_size),
            val_accuracy=0.0 if data.count("val") else math.nan,
        )
        for i, (plan, defense) in enumerate(zip(run.defenses, defenses, strict=True)):
            try:
                if plan.acts_in(number):
                    defense.check_stage(s)
            except ValueError as e:
                raise UserError(f"runs.{run.label}.defenses.{i}: {one_line(e)}") from None
