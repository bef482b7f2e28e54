"""Fixtures for all tests: small machines, no download, real data only where RBS_DATA says it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tests run side by side; one thread each also makes sums reproducible


@pytest.fixture
def data_root() -> Path:
    """Folder of the real data sets; the test is skipped, visibly, where there is none."""
    root = os.environ.get("RBS_DATA", "")
    if not root or not Path(root).is_dir():
        pytest.skip("RBS_DATA does not name a folder with the real data sets")
    return Path(root).resolve()


@pytest.fixture
def one_pass_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over a random network go through it one by one, so that they can be counted."""
    monkeypatch.setattr("attacks.base._IMAGES", 1)
