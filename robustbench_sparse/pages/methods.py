"""What a row's texts and counts say of its kind: methods, structure and band of its zeros, division of its training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

DENSE = 1.0  # percent of weights below which a network counts as dense
# From the coarsest to the finest: the first that most of the zeros lie in names their structure.
STRUCTURES = (("channels", "channel_sparsity"), ("rows", "row_sparsity"), ("kernels", "kernel_sparsity"))
BANDS = ((DENSE, "dense"), (50, "1 to 50 %"), (80, "50 to 80 %"), (90, "80 to 90 %"), (95, "90 to 95 %"),
         (99, "95 to 99 %"))  # fmt: skip
HIGHEST = "99 % and more"
ADVERSARIAL = {"pgd_at", "trades", "mart", "n_fgsm", "fgsm_rs", "awp"}
OTHERWISE = {"clip", "spectral_penalty", "enresnet", "mean_sparse", "quantise", "broken"}
AVERAGES = {"ema", "label_smoothing"}  # of no division by themselves
_NAME = re.compile(r"[\w.:-]+")


def methods_of(defenses: str) -> list[str]:
    """The methods that a leaderboard's text of defenses names, without their settings: ``a(b=1)+c`` -> a, c."""
    found, depth, start = [], 0, 0
    for place, letter in enumerate(f"{defenses}+"):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "+" and depth <= 0:
            name = _NAME.match(defenses[start:place].strip())
            found += [name[0]] if name else []
            start = place + 1
    return found


def structure_of(row: Mapping[str, Any]) -> str:
    """Where most of a network's zeros lie: whole channels, rows, kernels, or single weights; "" where not counted."""
    zeros = row.get("weight_sparsity")
    if zeros is None:
        return ""
    if zeros < DENSE:
        return "dense"
    return next((name for name, key in STRUCTURES if (row.get(key) or 0.0) >= zeros / 2), "single weights")


def band_of(row: Mapping[str, Any]) -> str:
    """How sparse a network is, in bands; "" where not counted."""
    zeros = row.get("weight_sparsity")
    if zeros is None:
        return ""
    return next((name for limit, name in BANDS if zeros < limit), HIGHEST)


def division_of(methods: Sequence[str], row: Mapping[str, Any]) -> str:
    """How a network was trained: adversarially, with another defense, naturally, or not here."""
    if ADVERSARIAL & {*methods}:
        return "adversarial training"
    if OTHERWISE & {*methods}:
        return "another defense"
    return "natural training" if row.get("precision") or row.get("train_seconds") else "from elsewhere"


def sparse_method(methods: Sequence[str]) -> str:
    """What made a network sparse, by its names; "none" where nothing did."""
    left = [m for m in methods if m not in ADVERSARIAL | OTHERWISE | AVERAGES]
    return (
        " + ".join(m for m in left if m not in ("sparse_init", "target_sparsity"))
        or " + ".join(left)
        or "none"
    )


def fraction(eps: float) -> str:
    """A radius as it is written: in decimals where two say it, in 255ths where it is a whole number of them."""
    parts = eps * 255
    if eps and round(eps, 2) != eps and abs(parts - round(parts)) < 1e-6 and round(parts) < 255:
        return f"{round(parts)}/255"
    return f"{eps:.4g}"
