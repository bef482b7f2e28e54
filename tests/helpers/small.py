"""A benchmark small enough for a test: two networks on the embedded digits."""

from __future__ import annotations

import copy
from typing import Any

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits"},
    "validation": 100,
    "train_limit": 600,
    "threat": {"norm": "linf", "eps": 0.1},
    "attacks": {"fgsm": "fgsm", "pgd": {"name": "pgd", "steps": 4}},
    "evaluation": {"limit": 96, "batch_size": 32, "draws": 3},
    "model": {"name": "preact_resnet", "depth": 8, "widths": [8, 16, 16]},
    "train": {
        "epochs": 4,
        "batch_size": 64,
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        "schedule": {"name": "multistep", "milestones": [2]},
        "augment": {"crop": 1, "flip": True},
    },
    "runs": {
        "natural": {},
        "all": {
            "defenses": [
                {"name": "pgd_at", "steps": 2},
                {"name": "enresnet", "members": 2},
                {"name": "rgsm", "regulariser": "group_l0", "beta": 1.0, "lam": 0.9, "lam2": 1e-5},
                {"name": "clip", "lam": 0.01, "pairs": 16},
            ]
        },
    },
}


def small(**changes: Any) -> dict[str, Any]:
    """A copy of the small benchmark with top-level keys replaced."""
    return {**copy.deepcopy(SMALL), **changes}
