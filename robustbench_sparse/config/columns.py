"""The leaderboard's columns: where a name lives, and which names are taken."""

from __future__ import annotations

from collections.abc import Iterable

IDENTITY = ("benchmark", "run", "seed", "dataset", "model", "defenses", "precision", "n")
SPARSITIES = ("weight_sparsity", "linear_sparsity", "channel_sparsity", "kernel_sparsity", "row_sparsity")
COUNTS = ("parameters", "nonzero_parameters", "macs", "sparse_macs")
TRAIN = ("train_accuracy",)
SECONDS = ("train_seconds", "eval_seconds")
RANKS = ("rank", "rank_high", "rank_seeds", "rank_seeds_high")
DETECTABLE = ("detectable", "detectable_seeds")
BELIEF = ("worst_n", *RANKS, *DETECTABLE, "verdict", "flags", "protocol")
RESTORED = ("mse", "psnr", "ssim")  # of a restoration network: squared error, dB, structural similarity
MSE = "_mse"  # behind an attack's label: the mean squared error under it
PUBLISHED = "published_"  # before the name of the column that a published value belongs to


def restored_columns(attacks: Iterable[str]) -> list[str]:
    """The measured columns of a benchmark of restoration networks under attacks of these labels."""
    labels = list(attacks)
    return [*RESTORED, *(f"{label}{MSE}" for label in labels), *([f"worst{MSE}"] if labels else [])]


def is_reserved(label: str) -> bool:
    """Whether an attack of this name would be mixed up with another column of the leaderboard."""
    fixed = {
        *IDENTITY,
        *SPARSITIES,
        *COUNTS,
        *TRAIN,
        *SECONDS,
        *BELIEF,
        *RESTORED,
        "asked",
        "clean",
        "worst",
        "status",
        "run_id",
        "commit",
        "seeds",
    }
    return (
        label in fixed or label.startswith(PUBLISHED) or label.endswith(("_lo", "_hi", "_mean", "_std", MSE))
    )
