"""Trainings of twenty steps; ``python -m tests.helpers.second_process MEETING`` is the second process of them all."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_sparse.config.load import resolve
from robustbench_sparse.data.digits import Digits
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.runs.trained import Trained
from robustbench_sparse.training.parallel import Ranks, joined
from robustbench_sparse.training.trainer import Trainer

MLP = {"name": "mlp", "hidden": [32]}
RESIDUAL = {"name": "preact_resnet", "depth": 8, "widths": [4, 8, 8]}  # with batch-norm
PGD = {"name": "pgd_at", "steps": 3}
# Some trainings turn a difference of 1e-7 into one of 1e-2 within twenty steps, by one process, too: of those, a few.
FEW = {"train": {"epochs": 1}}
# Of 127 images an epoch has two minibatches of 63, which are not even, and one of a single image.
CASES: dict[str, dict[str, Any]] = {
    "natural": {"model": RESIDUAL},
    "natural in unequal parts": {"train_limit": 127, "train": {"batch_size": 63, "epochs": 7}},
    "pgd_at": {"defenses": [PGD]},
    "pgd_at with the batch's statistics": {
        "model": RESIDUAL,
        "defenses": [{**PGD, "batch_statistics": True}],
        "train_limit": 64,
        **FEW,
    },
    "rgsm": {
        "model": RESIDUAL,
        "defenses": [{"name": "rgsm", "regulariser": "group_l0", "beta": 1.0, "lam": 0.01, "lam2": 1e-5}],
    },
    "linbreg": {
        "defenses": [{"name": "sparse_init", "density": 0.3}],
        "train": {"optimizer": {"name": "linbreg", "lr": 0.1, "lam": 0.05, "momentum": 0.9}},
    },
    "enresnet": {"model": RESIDUAL, "defenses": [PGD, {"name": "enresnet", "members": 1}]},
    "ema": {"model": RESIDUAL, "defenses": ["ema"]},
    "trades, awp": {"defenses": [{"name": "trades", "start_noise": 0.03}, "awp"]},
    "trades, awp with batch-norm": {
        "model": RESIDUAL,
        "defenses": [{"name": "trades", "start_noise": 0.03}, "awp"],
        "train_limit": 64,
        **FEW,
    },
    "clip, n_fgsm": {
        "defenses": [
            {"name": "n_fgsm", "alarm_images": 40},
            {"name": "clip", "lam": 0.01, "pairs": 8, "cheap": True, "reduction": "mean"},
        ],
    },
}


def trained(
    case: Mapping[str, Any], ranks: Ranks | None = None
) -> tuple[Trained, dict[str, Tensor], dict[str, Tensor]]:
    """What a training leaves, the network's state, and the states of its streams."""
    train = {
        "epochs": 4,
        "batch_size": 64,
        "augment": {"crop": 1, "flip": True},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        **case.get("train", {}),
    }
    raw = {
        "name": "t",
        "data": "digits",
        "validation": 50,
        "train_limit": case.get("train_limit", 320),
        "threat": {"norm": "linf", "eps": 0.1},
        "attacks": {"fgsm": "fgsm"},
        "model": case.get("model", MLP),
        "train": train,
        "runs": {"r": {"defenses": case.get("defenses", [])}},
    }
    plan = resolve(raw)
    data = plan.prepare(Digits().load(), torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            plan.runs[0], data, plan.threat, 3, Path(folder) / "checkpoint.pt", Silent(), ranks=ranks
        )
        left = trainer.train()
    state = {k: v.detach().clone() for k, v in trainer.model.state_dict().items()}
    return left, state, trainer.streams.state_dict()


def main() -> None:
    """Be the second process of every case."""
    torch.set_num_threads(1)
    with joined(Path(sys.argv[1]), 1, 2, torch.device("cpu")) as ranks:
        for case in CASES.values():
            trained(case, ranks)


if __name__ == "__main__":
    main()
