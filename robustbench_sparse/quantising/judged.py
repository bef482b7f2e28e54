"""The float network and the one in int8 under the same attacks, each judged on itself."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import nn

from robustbench_sparse.config.plan import Plan
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.engine.fast import FastNetwork, logits_in_parts
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.foundation.paired import interval
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.foundation.streams import derive
from robustbench_sparse.judging.judge import Judge, JudgeSettings
from robustbench_sparse.runs import names
from robustbench_sparse.runs.manifest import manifest_of
from robustbench_sparse.runs.outcomes import Verdicts, verdicts
from robustbench_sparse.sparsity.quantise.onnx_network import OnnxNetwork

# Whose images the network in int8 is judged on: the float network's, and its own by the float network's gradients.
WAYS = ("carried_over", "straight_through")


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks side by side, in eval mode on the CPU.

    Attributes:
        source: as it was given.
        float32: what was quantised: without noise, and shrunk where that was asked for.
        float_graph, int8_graph: its ONNX file, and the one in int8.
    """

    source: nn.Module
    float32: nn.Module
    float_graph: bytes
    int8_graph: bytes

    def int8(self) -> OnnxNetwork:
        """The network in int8; its gradients are the float network's."""
        return OnnxNetwork(self.int8_graph, self.float32, torch.get_num_threads())


def judged(
    networks: Networks,
    plan: Plan,
    images: Dataset,
    data: PreparedData,
    seed: int,
    show: Progress,
    notes: list[str],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Attack the float network, and the one in int8 in two ways; judge each on itself.

    Args:
        networks: side by side.
        plan: holds the attacks.
        images, data: the data set, and its test images as they are cut.
        seed: of the attacks.
        show: where progress goes.
        notes: what could not be judged is added to them.

    Returns:
        One row per image (``index``): whether a network is right (1) or not (0) on the clean image and under each
        attack and the worst of them, as ``WAY/LABEL``. A way is ``float``; ``carried_over``: the network in int8 on the
        images that the float network's attack gave; ``straight_through``: on those that the same attack gives on it,
        with the float network's gradients; ``int8``: the worse of the two. And the rates counted from them.

    Raises:
        UserError: a network without verdicts on clean images.
    """
    manifest = manifest_of(plan, images, [])
    ways = {
        "float": (networks.float32, None),
        "carried_over": (networks.int8(), networks.float32),
        "straight_through": (networks.int8(), None),
    }
    found: dict[str, Verdicts] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for way, (model, stand_in) in ways.items():
            settings = JudgeSettings(seed=derive(seed, "evaluation"))
            judge = Judge(model.eval(), data, Path(scratch) / way, settings, way, show, way.replace("_", " "))
            # An ordinary network: its candidates are judged as they are, see ``engine.fast.confirmed``.
            judge.climb(cast("FastNetwork | None", stand_in))
            judge.everything(plan.attacks)
            found[way] = verdicts(Path(scratch) / way, manifest)
            notes += [f"{way}: {gap}" for gap in found[way].gaps]
    table = _table(found)
    x = data.gather("test", torch.arange(data.count("test")))[0]
    same = logits_in_parts(networks.float32, x).argmax(1) == logits_in_parts(networks.int8(), x).argmax(1)
    labels = [a.label for a in plan.attacks]
    return table, {
        "images": len(table),
        "agreement": 100 * float(same.float().mean()),
        **_rates(table, labels),
    }


def _table(found: Mapping[str, Verdicts]) -> pd.DataFrame:
    """One row per image: whether each network is right, on the clean image and under each attack, each way."""
    first = found["float"]
    columns: dict[str, Any] = {"index": first.index}
    for way, verdict in found.items():
        if names.CLEAN not in verdict.columns or verdict.index != first.index:
            raise UserError(f"{way}: {'; '.join(verdict.gaps) or 'judged on other images'}")
        columns |= {f"{way}/{label}": column.tolist() for label, column in verdict.columns.items()}
    table: pd.DataFrame = pd.DataFrame(columns)
    for label in [name for name in first.columns if name != names.CLEAN]:
        ways = [f"{way}/{label}" for way in WAYS]
        if all(way in table for way in ways):
            table[f"int8/{label}"] = table[ways].min(axis=1)
    table = table.rename(columns={"straight_through/clean": "int8/clean"}).drop(columns="carried_over/clean")
    return table


def _rates(table: pd.DataFrame, labels: Sequence[str]) -> dict[str, Any]:
    """Rates in percent with their Wilson intervals, and the paired difference of int8 and float."""

    def rate(name: str) -> dict[str, float] | None:
        if name not in table:
            return None
        total, n = float(table[name].sum()), len(table)
        low, high = wilson(total, n)
        return {"percent": 100 * total / n, "low": 100 * low, "high": 100 * high}

    def beside(label: str) -> dict[str, Any]:
        out: dict[str, Any] = {"float": rate(f"float/{label}"), "int8": rate(f"int8/{label}")}
        if out["float"] and out["int8"]:
            both = table[f"int8/{label}"].tolist(), table[f"float/{label}"].tolist()
            out["difference"] = out["int8"]["percent"] - out["float"]["percent"]
            out["difference_interval"] = [100 * bound for bound in interval(*both)]
        return out

    attacks = {label: {way: rate(f"{way}/{label}") for way in ("float", "int8", *WAYS)} for label in labels}
    return {"clean": beside("clean"), "worst": beside("worst"), "attacks": attacks}
