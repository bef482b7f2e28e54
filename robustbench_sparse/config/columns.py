"""The leaderboard's columns: where a name lives, and which names are taken."""

from __future__ import annotations

IDENTITY = ("benchmark", "run", "seed", "dataset", "model", "defenses", "precision", "n")
SPARSITIES = ("weight_sparsity", "linear_sparsity", "channel_sparsity", "kernel_sparsity", "row_sparsity")
COUNTS = ("parameters", "nonzero_parameters", "macs", "sparse_macs")
TRAIN = ("train_accuracy",)
SECONDS = ("train_seconds", "eval_seconds")
BELIEF = ("rank", "rank_seeds", "verdict", "flags")
PUBLISHED = "published_"  # before the name of the column that a published value belongs to


def is_reserved(label: str) -> bool:
    """Whether an attack of this name would be mixed up with another column of the leaderboard."""
    fixed = {
        *IDENTITY,
        *SPARSITIES,
        *COUNTS,
        *TRAIN,
        *SECONDS,
        *BELIEF,
        "asked",
        "clean",
        "worst",
        "status",
        "run_id",
        "commit",
        "seeds",
    }
    return label in fixed or label.startswith(PUBLISHED) or label.endswith(("_lo", "_hi", "_mean", "_std"))
