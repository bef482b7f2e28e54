"""Tensors on disk between runs: written whole or not at all, never trusted when they do not fit."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

log = logging.getLogger(__name__)


def read_cache(path: Path, stamp: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The tensors and texts written under this stamp; None when there are none or damaged ones."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            texts: dict[str, str] = file.metadata() or {}
            if texts.get("stamp") != stamp:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, texts  # noqa: SIM118 (no mapping)
    except (OSError, safetensors.SafetensorError) as error:
        log.warning("cache %s cannot be read and is made again: %s", path, error)
        return None


def write_cache(path: Path, stamp: str, tensors: dict[str, Tensor], texts: dict[str, str]) -> None:
    """Write tensors and texts under a stamp, atomically. A folder that cannot be written is only logged."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, temporary, metadata={**texts, "stamp": stamp})
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        log.warning("cache %s cannot be written, going on without it: %s", path, error)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
