"""Whether networks, defenses, optimisers and data fit together, found out before anything trains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from attacks.base import Threat
from defenses.base import Defense, Step
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.errors import UserError, one_line
from robustbench_sparse.plan import RunPlan
from robustbench_sparse.train import build_network


def check_runs(runs: Sequence[RunPlan], data: PreparedData, threat: Threat) -> None:
    """Build every network without memory and look at every stage.

    Raises:
        UserError: for the first pair that does not fit, with the run's label.
    """
    for run in runs:
        try:
            with torch.device("meta"):
                defenses = [d.build() for d in run.defenses]
                model = build_network(run, defenses, data.channels, data.size, data.classes, 0)
        except ValueError as e:
            raise UserError(f"runs.{run.label}: {one_line(e)}") from None
        _check_batches(run, model, data)
        _check_stages(run, defenses, model, data, threat)


def _check_batches(run: RunPlan, model: nn.Module, data: PreparedData) -> None:
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
            stage.optimiser.build(model),
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
