"""Networks on shifted images: no adversary, the same judge, one record per image.

A network that cannot take such images, of another size perhaps, has no number there: its outcome is ``crashed``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from attacks.base import SampleRandom
from robustbench_sparse.config.plan import ShiftPlan
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import plain
from robustbench_sparse.judging.judge import Judge
from robustbench_sparse.runs.outcome_store import Wanted
from robustbench_sparse.runs.provenance import code_of

TOGETHER = 128  # images of their own size that a network is sent at once; fewer where a shift enlarges them


class ShiftedJudge:
    """Judges one network on shifted test images, and keeps the outcomes beside those under attacks.

    Args:
        judge: the network's, with its data, settings and folder.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def everything(self, plans: Iterable[ShiftPlan]) -> None:
        """Judge every shift; what is stored already is not judged again."""
        for plan in plans:
            self.shift(plan)

    def all_done(self, plans: Iterable[ShiftPlan]) -> bool:
        """Whether every outcome is stored already."""
        return all(self.judge.store.is_done(plan.label, self.key(plan)) for plan in plans)

    def shift(self, plan: ShiftPlan) -> pd.DataFrame:
        """Verdicts on images under one shift: index, label, pred, correct (share of draws), forward, status."""

        def judge(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
            height, width = plan.shift.shape(*x.shape[2:])
            together = max(1, min(TOGETHER, TOGETHER * x[0, 0].numel() // max(height * width, 1)))
            parts = torch.split(torch.arange(len(y)), together)
            tables = [self._part(plan, index[at], x[at.to(x.device)], y[at.to(y.device)]) for at in parts]
            return pd.concat(tables, ignore_index=True)

        data, settings = self.judge.data, self.judge.settings
        wanted = Wanted(label=plan.label, key=self.key(plan), facts={"draws": self.judge.draws})
        return self.judge.store.collect(
            wanted, lambda: data.ordered("test", settings.batch_size), data.count("test"), judge
        )

    def _part(self, plan: ShiftPlan, index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
        seed = self.judge.settings.seed
        shifted = plan.shift(x, SampleRandom.for_images(seed, f"shift/{plan.label}", index.tolist()))
        seen = torch.isfinite(shifted).flatten(1).all(1).cpu()
        try:
            return self.judge.records(index, shifted, y, f"judge/{plan.label}", seen)
        except UserError as e:  # of this shift alone: no reason to stop
            raise ValueError(str(e)) from None

    def key(self, plan: ShiftPlan) -> dict[str, Any]:
        """Everything that determines an outcome's numbers."""
        clean = {k: v for k, v in self.judge.key(None).items() if k != "attack"}
        out: dict[str, Any] = plain({**clean, "shift": plan.record(), "code": code_of([plan.shift])})
        return out
