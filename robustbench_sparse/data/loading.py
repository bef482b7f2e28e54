"""Data sets read and cut into parts, with errors for people."""

from __future__ import annotations

from pathlib import Path

import torch

from robustbench_sparse.data.base import DataError, Dataset, DatasetSpec
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.errors import UserError, one_line


def load_dataset(spec: DatasetSpec, data_root: str | Path | None) -> Dataset:
    """A data set, looked for below ``data_root``; UserError where it is missing or damaged."""
    root = Path(data_root) if data_root is not None else None
    if root is not None and not root.is_dir():
        raise UserError(f"--data-root {root}: no such folder")
    try:
        return spec.load(root, None)
    except DataError as e:
        raise UserError(f"data: {e}") from None


def prepare_data(
    dataset: Dataset,
    device: torch.device,
    *,
    validation: int = 0,
    train_limit: int | None = None,
    test_limit: int | None = None,
) -> PreparedData:
    """The data set split, cut and moved, see ``PreparedData``; UserError where it is too small for that."""
    try:
        return PreparedData(
            dataset, validation=validation, device=device, train_limit=train_limit, test_limit=test_limit
        )
    except ValueError as e:
        raise UserError(f"data: {one_line(e)}") from None
