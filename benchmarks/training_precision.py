"""What bfloat16, channels-last and compiling do to robustness when they are used in training, each by itself.

``python -m benchmarks.training_precision --data-root DIR [--seeds 0,1,2] [--arms fp32,both_bf16]``: ResNet-8 under
PGD-5 training on 4 000 images of CIFAR-10 (JPEG), 10 epochs, judged clean and under PGD-20 (IFGSM, 2/255 a step) in
float32 on 2 000 test images. Every arm of a seed starts from the same weights and sees the same images. Rows go to a
CSV as they are finished, and the same command goes on after an interrupt; the summary is of paired differences to
``fp32``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy.stats import t as student

from attacks import IFGSM
from attacks.base import SampleRandom
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plan import Plan, StagePlan
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.engine.fast import FastNetwork, FastTraining, Precision
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.models.build import build_network, on_device
from robustbench_sparse.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What differs from float32, channels-last, eager."""

    attack: Precision = "fp32"
    training: Precision = "fp32"
    contiguous: bool = False
    compile: bool = False


ARMS = {
    "fp32": Arm(),
    "attack_bf16": Arm(attack="bf16"),
    "pass_bf16": Arm(training="bf16"),
    "both_bf16": Arm(attack="bf16", training="bf16"),
    "contiguous": Arm(contiguous=True),
    "compiled": Arm(compile=True),
    "bf16_compiled": Arm(attack="bf16", training="bf16", compile=True),
}


class ArmTrainer(Trainer):
    """The trainer with one arm's passes."""

    arm: Arm

    def _make_quick(self, stage: StagePlan) -> None:
        super()._make_quick(stage)
        arm = self.arm
        if arm.contiguous:
            self.model.to(memory_format=torch.contiguous_format)
            self._forward = lambda x: self.model(x.contiguous())
            return
        self._forward = FastTraining(self.model, precision=arm.training, compile=arm.compile)
        self._forward.warm_up(self._sample)
        if arm.attack == "bf16" or arm.compile:
            fast = FastNetwork(self.model, precision=arm.attack, compile=arm.compile)
            fast.warm_up(self._sample)
            self.s.fast = fast.refresh
        notes = [part.note for part in (self._forward, getattr(self.s.fast, "__self__", None)) if part]
        assert not any(notes), notes


def plan_of() -> Plan:
    """The setting all arms share."""
    return resolve(
        {
            "name": "training_precision",
            "data": {"name": "image_folder", "path": "cifar10-jpeg.zip", "label": "CIFAR-10 (JPEG)"},
            "validation": 100,
            "train_limit": 4000,
            "threat": {"norm": "linf", "eps": 8 / 255},
            "evaluation": {"limit": 2000},
            "model": {"name": "preact_resnet", "depth": 8},
            "train": {
                "epochs": 10,
                "batch_size": 64,
                "selection": "last",
                "optimizer": {
                    "name": "sgd",
                    "lr": 0.1,
                    "momentum": 0.9,
                    "nesterov": True,
                    "weight_decay": 5e-4,
                },
                "schedule": "one_cycle",
                "augment": {"crop": 4, "flip": True},
            },
            "runs": {"at": {"defenses": [{"name": "pgd_at", "steps": 5, "step_size": 3 / 255}]}},
        }
    )


def row(plan: Plan, data: PreparedData, seed: int, arm: str) -> dict[str, Any]:
    """Train and judge one arm of one seed."""
    run = plan.runs[0]
    ArmTrainer.arm = ARMS[arm]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = ArmTrainer(run, data, plan.threat, seed, Path(scratch) / "checkpoint.pt", Silent())
        trained = trainer.train()
    defenses = [d.build() for d in run.defenses]
    model = build_network(run.model, defenses, data.channels, data.size, data.classes, seed)
    model.load_state_dict(trained.weights)
    model = on_device(model.eval(), data.device)
    attack, clean, robust = IFGSM(steps=20, step_size=2 / 255, keep="last"), 0, 0
    for x, y, index in data.ordered("test", 250):
        streams = SampleRandom.for_images(seed, "pgd", index.tolist())
        adversarial = attack(model, x, y, plan.threat, streams)
        with torch.no_grad():
            clean += int((model(x).argmax(1) == y).sum())
            robust += int((model(adversarial).argmax(1) == y).sum())
    n = data.count("test")
    return {"seed": seed, "arm": arm, "clean": 100 * clean / n, "pgd20": 100 * robust / n, "n": n}


def summary(table: pd.DataFrame) -> str:
    """Mean paired difference of every arm to float32, with its 95 % interval over seeds (Student's t)."""
    lines = []
    for arm in (a for a in ARMS if a != "fp32"):
        for column in ("clean", "pgd20"):
            by = table.pivot(index="seed", columns="arm", values=column)
            if arm not in by or "fp32" not in by:
                continue
            gaps = (by[arm] - by["fp32"]).dropna().tolist()
            if len(gaps) > 1:
                half = (
                    float(student.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / math.sqrt(len(gaps))
                )
                lines.append(
                    f"{arm:<14}{column:<6}{statistics.mean(gaps):+.2f} +- {half:.2f}  ({len(gaps)} seeds)"
                )
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing and print the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/training-precision.csv"))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--arms", default=",".join(ARMS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    plan = plan_of()
    data = plan.prepare(load_dataset(plan.dataset, asked.data_root), torch.device("cpu"))
    rows = pd.read_csv(asked.out).to_dict("records") if asked.out.exists() else []
    done = {(r["seed"], r["arm"]) for r in rows}
    for seed in map(int, asked.seeds.split(",")):
        for arm in asked.arms.split(","):
            if (seed, arm) in done:
                continue
            rows.append(row(plan, data, seed, arm))
            print(rows[-1], flush=True)
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_csv(asked.out, index=False)
    print(summary(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
