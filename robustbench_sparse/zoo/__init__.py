"""Small trained networks that come with the package, with what was measured of them.

``list_models()`` says what there is, ``load_model(name)`` gives a network, and
``robustbench-sparse evaluate zoo:NAME`` measures it again. Where they come from and how one is added: ``docs/zoo.md``.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from torch import nn

from attacks.base import Norm
from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.foundation.intervals import difference
from robustbench_sparse.runs import zoo
from robustbench_sparse.runs.evidence import NOT_CHECKED, NUMBER
from robustbench_sparse.runs.zoo import ZooNetwork

__all__ = ["ZooNetwork", "against_record", "list_models", "load_model"]

# As robustness benchmarks write a threat's norm -> as it stands here.
THREATS: dict[str, Norm] = {"Linf": "linf", "L2": "l2"}
SHOWN = ("weight_sparsity", "channel_sparsity", "parameters", "nonzero_parameters", "verdict", "protocol")


def list_models(
    dataset: str | None = None, threat_model: str | None = None, *, threat: str | None = None
) -> pd.DataFrame:
    """The networks of the zoo, one row each, in the order of their names.

    A table and no list of names: what one looks for is a network of some accuracy at some size.

    Args:
        dataset: only those judged on this one, by the first part of their names (``mnist``); case does not matter.
        threat_model: only those judged under this norm, ``Linf`` or ``L2``; case does not matter.
        threat: the same, under its earlier name.

    Returns:
        ``name``, ``dataset``, ``threat``, ``eps``, ``clean`` and ``robust`` (the row's worst case) in percent with
        ``_lo`` and ``_hi``, ``images`` and ``robust_images`` that these were measured on, ``weight_sparsity`` and
        ``channel_sparsity`` in percent, ``parameters``, ``nonzero_parameters``, ``verdict``, ``protocol``.

    Raises:
        UserError: a norm or a data set that no network has; or a file of the zoo that was changed.
    """
    found = list(zoo.every())
    asked = _one(threat_model, threat)
    if asked is not None:
        norm = _norm(asked)
        found = [n for n in found if n.norm == norm]
    if dataset is not None:
        known = sorted({n.name.partition("/")[0] for n in found})
        if dataset.lower() not in known:
            raise UserError(
                f"dataset: expected one of {', '.join(known)}, got {dataset!r}{near(dataset, known)}"
            )
        found = [n for n in found if n.name.startswith(f"{dataset.lower()}/")]
    table: pd.DataFrame = pd.DataFrame([_row(n) for n in found])
    return table


def load_model(
    model_name: str,
    dataset: str | None = None,
    threat_model: str | None = None,
    *,
    threat: str | None = None,
) -> nn.Module:
    """A network of the zoo, in eval mode on the CPU.

    Args:
        model_name: as ``list_models`` has it; beside a ``dataset`` its second half is enough.
        dataset: the first half of its name, as in ``mnist``; case does not matter. None takes it from ``model_name``.
        threat_model: the norm that its numbers are expected to be of, ``Linf`` or ``L2``; None takes any.
        threat: the same, under its earlier name.

    Returns:
        A module that maps images (B, C, H, W) in [0, 1] to logits (B, K).

    Raises:
        UserError: no such network, one of another data set, numbers under another threat, or a file that was changed.
    """
    name = model_name.removeprefix(zoo.PREFIX)
    if dataset is not None and "/" not in name:
        name = f"{dataset.lower()}/{name}"
    network = zoo.find(name)
    if dataset is not None and network.name.partition("/")[0] != dataset.lower():
        raise UserError(f"dataset: {network.name} is not a network of {dataset}")
    asked = _one(threat_model, threat)
    if asked is not None and _norm(asked) != network.norm:
        raise UserError(f"threat: {network.name} was judged under {_shown(network.norm)}, not {asked}")
    return network.place.network(**network.images)


def against_record(table: pd.DataFrame, name: str) -> tuple[list[str], bool]:
    """What was just measured of a network, held against what its record says of the same images.

    Args:
        table: its row of a leaderboard, the last one; what ``evaluate`` returns.
        name: of the network.

    Returns:
        A line for each rate that both have, with the 95 % interval of their difference (Newcombe 1998, which is wide
        where both looked at the same images); and whether 0 lies in all of them. A worst case that the checks'
        adversarials lowered is compared with one that was checked, too, alone.
    """
    network, measured = zoo.find(name), table.iloc[-1]
    recorded, judged = network.verdicts(), table.attrs.get("images")
    kept_whole = (
        ("worst",) if _lowered(network.row) else ()
    )  # the checks choose their images of all that are judged
    lines, fine = [], True
    for column in network.rates:
        if column not in table.columns or pd.isna(measured[column]):
            continue
        if (
            column == "worst"
            and _lowered(network.row)
            and measured.get("verdict", NOT_CHECKED) == NOT_CHECKED
        ):
            lines.append(
                f"worst: recorded {network.row['worst']:.1f} % of {_images(network.row, 'worst')}, with the checks' "
                "adversarials: --certificate quick looks for them"
            )
            continue
        known = recorded[column].dropna()
        same = known[known.index.isin(judged)] if judged and column not in kept_whole else known
        known = same if len(same) else known
        now, n = float(measured[column]), _images(measured, column)
        low, high = difference(now / 100 * n, n, math.fsum(known), len(known))
        inside = low <= 0 <= high
        fine &= inside
        span = f"{100 * low:+.1f} to {100 * high:+.1f}"
        verdict = "agrees" if inside else "DIFFERS"
        lines.append(
            f"{column}: {now:.1f} % of {n}, recorded {100 * known.mean():.1f} % of {len(known)}: {verdict} ({span})"
        )
    return lines, fine


def _images(row: Any, column: str) -> int:
    """How many images a rate was measured on."""
    n = row.get("worst_n") if column == "worst" else row.get("n")
    return int(row["n"] if n is None or (isinstance(n, float) and math.isnan(n)) else n)


def _lowered(row: Any) -> bool:
    """Whether the checks' adversarials count in a record's worst case."""
    return _images(row, "worst") < int(row["n"]) or NUMBER in str(row.get("flags", "")).split()


def _row(network: ZooNetwork) -> dict[str, Any]:
    row = network.row
    rates = {
        f"{name}{end}": row.get(f"{column}{end}")
        for name, column in (("clean", "clean"), ("robust", "worst"))
        for end in ("", "_lo", "_hi")
    }
    return {
        "name": network.name,
        "dataset": network.dataset,
        "threat": _shown(network.norm),
        "eps": network.eps,
        **rates,
        "images": row["n"],
        "robust_images": _images(row, "worst"),
        **{k: row.get(k) for k in SHOWN},
    }


def _one(threat_model: str | None, threat: str | None) -> str | None:
    if threat_model is not None and threat is not None:
        raise UserError("threat: expected threat_model alone, got both")
    return threat_model or threat


def _norm(threat: str) -> Norm:
    for shown, norm in THREATS.items():
        if threat.lower() == shown.lower():
            return norm
    raise UserError(f"threat: expected {' or '.join(THREATS)}, got {threat!r}")


def _shown(norm: Norm) -> str:
    return next(shown for shown, known in THREATS.items() if known == norm)
