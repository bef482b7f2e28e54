"""A row as an entry of RobustBench's ``model_info``: their keys, in their order, and ours under a key of its own.

Their keys are the fields of ``robustbench.utils.ModelInfo`` (version 1.1.1); accuracies are texts of percents with two
decimals there. ``external`` is theirs, too: a rate of an evaluation that found more than AutoAttack, which their lists
then rank by.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from robustbench_sparse import zoo
from robustbench_sparse.config.plugins import settings_with_defaults
from robustbench_sparse.foundation.errors import UserError

OURS, EXTERNAL = "robustbench_sparse", "external"
KEYS = (
    "link",
    "name",
    "authors",
    "additional_data",
    "number_forward_passes",
    "dataset",
    "venue",
    "architecture",
    "eps",
    "clean_acc",
    "reported",
    "corruptions_acc",
    "corruptions_acc_3d",
    "corruptions_mce",
    "corruptions_mce_3d",
    "autoattack_acc",
    "footnote",
)
THREATS = {norm: shown for shown, norm in zoo.THREATS.items()}
ABOUT = (
    "link",
    "name",
    "authors",
    "additional_data",
    "venue",
    "architecture",
    "reported",
)  # what only people know


def entry(
    row: Mapping[str, Any], manifest: Mapping[str, Any], about: Mapping[str, Any], ours: Mapping[str, Any]
) -> dict[str, Any]:
    """The entry of a row.

    Args:
        row: of the leaderboard, complete.
        manifest: its benchmark's.
        about: what people know of the network, by keys of ``ABOUT``; others are null.
        ours: what stands under ``OURS``.

    Raises:
        UserError: none of the row's attacks is AutoAttack in the benchmark's threat, which their number is of.
    """
    label, notes = autoattack_of(manifest)
    robust, worst = float(row[label]), float(row["worst"])
    eps = float(manifest["threat"]["eps"])
    known: dict[str, Any] = {
        **{k: about.get(k) for k in ABOUT},
        "venue": about.get("venue") or "",  # their lists say Unpublished then
        "architecture": about.get("architecture") or str(row["model"]),
        "number_forward_passes": int(ours.get("draws", 1)),
        "dataset": ours["data"],
        "eps": shown_eps(eps),
        "clean_acc": percent(float(row["clean"])),
        "autoattack_acc": percent(robust),
        "footnote": "; ".join(notes) or None,
    }
    out: dict[str, Any] = {k: known.get(k) for k in KEYS}
    if percent(worst) != percent(robust):
        out[EXTERNAL] = percent(worst)
    return {**out, OURS: dict(ours)}


def autoattack_of(manifest: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The label of a benchmark's AutoAttack, and how its settings differ from the standard ones."""
    from attacks.autoattack import AutoAttack

    standard = settings_with_defaults(AutoAttack)
    for label, settings in manifest["settings"].items():
        mine = {k: v for k, v in settings.items() if k not in ("name", "threat")}
        if settings.get("name") != "autoattack" or settings.get("threat") != manifest["threat"]:
            continue
        if mine.get("target", "none") != "none" or mine.get("reference", "label") != "label":
            continue
        other = {k: v for k, v in mine.items() if k in standard and v != standard[k] and k != "eot"}
        return label, [f"AutoAttack with {', '.join(f'{k} {v}' for k, v in other.items())}"] if other else []
    raise UserError(
        "an entry of RobustBench has AutoAttack's number, and none of the row's attacks is that in the benchmark's "
        "threat: add `autoattack` to them, or take the suite full"
    )


def shown_eps(eps: float) -> str:
    """A radius as their files have it: in 255ths where it is so many, as in 8/255."""
    scaled = eps * 255
    return f"{round(scaled)}/255" if abs(scaled - round(scaled)) < 1e-6 and scaled >= 1 else f"{eps:g}"


def eps_of(text: str) -> float:
    """A radius back from such a text."""
    return float(Fraction(text))


def percent(rate: float) -> str:
    """A rate in percent, as their files have it."""
    return str(round(rate, 2))
