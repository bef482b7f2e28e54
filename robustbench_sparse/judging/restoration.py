"""The judge of restoration networks: how far their outputs are from the clean images, with and without an attack.

As everywhere, attacks only propose: norm, ball and error are measured here, in float32, on the network as it was read
back from its file. A crash or a value that is not finite leaves the image without a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from attacks.base import SampleRandom, Threat, check_candidate, is_stochastic, noise_from
from attacks.losses import squared_error
from attacks.pgd_mse import AroundInput
from robustbench_sparse.config.plan import AttackPlan, task_record
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.engine.fast import logits_in_parts
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import plain
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.judging.judge import (
    BOX_SLACK,
    JudgeSettings,
    PassCounter,
    images_key,
    inside,
    statuses,
    where,
)
from robustbench_sparse.judging.similarity import check_ssim, psnr, ssim
from robustbench_sparse.runs import names
from robustbench_sparse.runs.outcome_store import JudgesBatch, OutcomeStore, Wanted
from robustbench_sparse.runs.provenance import code_of
from robustbench_sparse.tasks.base import Task
from robustbench_sparse.tasks.inputs import fixed_pairs


class RestorationJudge:
    """Judges one restoration network on the test images and keeps the outcomes in a folder.

    Args:
        model: the deployed network in eval mode, on the data's device.
        task: makes the inputs, the same ones for every network.
        data: holds the test images.
        run: the run's folder, which keeps the outcomes; a killed evaluation goes on there.
        settings: seeds, batch size, draws of a random network, whose errors are averaged.
        identity: names the weights and the data set judged; outcomes of others are made anew.
        show: where progress goes.
        title: the bars' title.

    Raises:
        UserError: SSIM cannot be computed here.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        data: PreparedData,
        run: Path,
        settings: JudgeSettings,
        identity: str,
        show: Progress,
        title: str = "",
    ) -> None:
        check_ssim()
        self.model, self.task, self.data, self.settings, self.identity = model, task, data, settings, identity
        self.store = OutcomeStore(run, settings.batch_size, show, title)
        self.stochastic = is_stochastic(model)
        self.draws = settings.draws if self.stochastic else 1

    def everything(self, plans: Iterable[AttackPlan]) -> None:
        """Judge the outputs of the inputs as they are, and under every attack; what is stored is not judged again.

        A network that crashed on the inputs is not attacked.
        """
        if len(self.unattacked()) == self.data.count("test"):
            for plan in plans:
                self.attack(plan)
            self.store.tidy()

    def unattacked(self) -> pd.DataFrame:
        """Errors on the degraded inputs: index, mse, psnr, ssim, forward, status."""

        def judge(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
            random = SampleRandom.for_images(self.settings.seed, names.CLEAN, index.tolist())
            mse, similarity, finite = self._errors(x, y, random)
            table: pd.DataFrame = pd.DataFrame(
                {
                    "index": index.tolist(),
                    "mse": where(mse, finite),
                    "psnr": where(psnr(mse), finite),
                    "ssim": where(similarity, finite),
                    "forward": float(self.draws),
                    "status": statuses(finite),
                }
            )
            return table

        return self._collect(names.CLEAN, self.key(None), judge, {})

    def attack(self, plan: AttackPlan) -> pd.DataFrame:
        """Errors under one attack: index, adv_mse, adv_psnr, adv_ssim, linf, l2, forward, backward, status."""

        def judge(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
            return self._attack_batch(plan, index, x, y)

        return self._collect(plan.label, self.key(plan), judge, {"bounded": plan.attack.bounded})

    def _attack_batch(self, plan: AttackPlan, index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
        seed, threat = self.settings.seed, plan.threat
        reach = AroundInput(norm=threat.norm, eps=threat.eps)
        counter = PassCounter(self.model).eval()
        random = SampleRandom.for_images(seed, f"attack/{plan.label}", index.tolist())
        candidate = check_candidate(plan.attack(counter, x, y, threat, random), x).detach().to(x)
        finite = torch.isfinite(candidate).flatten(1).all(1)
        candidate = torch.where(finite.view(-1, 1, 1, 1), candidate, x)
        low, high = x.clamp_max(0) - BOX_SLACK, x.clamp_min(1) + BOX_SLACK
        box = ((candidate < low) | (candidate > high)).flatten(1).any(1)
        ball = ~inside(threat, candidate - x)
        wrong = (box | ball).view(-1, 1, 1, 1)
        candidate = torch.where(wrong, reach.project(candidate, x), candidate)
        random = SampleRandom.for_images(seed, f"judge/{plan.label}", index.tolist())
        mse, similarity, finite_out = self._errors(candidate, y, random)
        judged, delta = finite.cpu() & finite_out, candidate - x
        table: pd.DataFrame = pd.DataFrame(
            {
                "index": index.tolist(),
                "adv_mse": where(mse, judged),
                "adv_psnr": where(psnr(mse), judged),
                "adv_ssim": where(similarity, judged),
                "linf": Threat(norm="linf").size(delta).tolist(),
                "l2": Threat(norm="l2").size(delta).tolist(),
                "forward": counter.forwards / len(x),
                "backward": counter.backwards / len(x),
                "status": statuses(judged, ball, box),
            }
        )
        return table

    def _errors(self, x: Tensor, y: Tensor, random: SampleRandom) -> tuple[Tensor, Tensor, Tensor]:
        """Squared error and SSIM, each the mean over the draws, and whether all outputs were finite; each (B,)."""
        error, similarity = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
        finite = torch.ones(len(x), dtype=torch.bool)
        with torch.no_grad(), noise_from(self.model, random if self.stochastic else None):
            for _ in range(self.draws):
                outputs = logits_in_parts(self.model, x).float()
                if outputs.shape != y.shape:
                    raise UserError(f"expected images of shape {tuple(y.shape)}, got {tuple(outputs.shape)}")
                finite &= torch.isfinite(outputs).flatten(1).all(1).cpu()
                error += squared_error(outputs.double(), y.double()).cpu()
                similarity += torch.tensor(ssim(outputs, y), dtype=torch.float64)
        return error / self.draws, similarity / self.draws, finite

    def key(self, plan: AttackPlan | None) -> dict[str, Any]:
        """Everything that determines an outcome's numbers; without a plan, those of the inputs as they are."""
        key: dict[str, Any] = {
            "identity": self.identity,
            **task_record(self.task),
            "attack": {"label": names.CLEAN} if plan is None else plan.record(),
            "seed": self.settings.seed,
            "draws": self.draws,
            "test_images": images_key(self.data),
        }
        if plan is not None:
            key["code"] = code_of([plan.attack])
        out: dict[str, Any] = plain(key)
        return out

    def _collect(
        self, label: str, key: dict[str, Any], judge: JudgesBatch, facts: dict[str, bool]
    ) -> pd.DataFrame:
        wanted = Wanted(label=label, key=key, facts={**facts, "draws": self.draws})
        return self.store.collect(
            wanted,
            lambda: fixed_pairs(self.task, self.data, "test", self.settings.batch_size),
            self.data.count("test"),
            judge,
        )
