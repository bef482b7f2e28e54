"""No false alarm on the networks that come with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.schema import NetworkConfig
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.gate.running import Known, run_gate
from robustbench_sparse.runs import zoo


@pytest.mark.data
def test_no_alarm_on_the_zoo(data_root: Path) -> None:
    seen: dict[str, list[str]] = {}
    loaded: dict[str, Dataset] = {}
    for name in zoo.names_of():
        network = zoo.find(f"{zoo.PREFIX}{name}")
        raw = {"name": "gate", "data": network.data, "evaluation": {"limit": 200}}
        plan = resolve(raw, name="gate", schema=NetworkConfig)
        images = loaded.get(network.dataset) or load_dataset(plan.dataset, data_root)
        loaded[network.dataset] = images
        data = plan.prepare(images, torch.device("cpu"))
        known = Known(claim=network.row["clean"])
        seen[name] = run_gate(network.place.network(**network.images), images, data, known, Silent())
    assert len(seen) >= 12
    assert all(not warned for warned in seen.values()), seen
