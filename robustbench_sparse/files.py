"""Files that are whole or not there: every write goes to a temporary file first and is renamed into place."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from robustbench_sparse.errors import Busy, UserError, one_line


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write`` on a temporary file beside ``path``, flush it to the disk and rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            # mkstemp makes files private; results are as readable as any other file of the user's.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda f: f.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; UserError when the file is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read: {one_line(e)}") from None


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically."""
    data = save({name: w.detach().cpu().contiguous() for name, w in weights.items()})
    write_atomically(path, lambda f: f.write(data))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read weights: safetensors, or torch's format restricted to tensors. Neither can run code.

    Raises:
        UserError: missing, truncated or damaged file, or one that holds more than tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on pickle protocols; what matters is said below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused: the file is damaged or could run code; save it as safetensors"
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as e:
        raise UserError(f"{path}: not a readable checkpoint: {one_line(e)[:200]}") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not (isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())):
        raise UserError(f"{path}: expected tensors by parameter name (a state_dict)")
    return state


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load weights into a network; UserError naming what does not fit when they belong to another one."""
    own = model.state_dict()
    missing = [n for n in own if n not in weights]
    extra = [n for n in weights if n not in own]
    shapes = [
        f"{n} is {tuple(weights[n].shape)}, expected {tuple(own[n].shape)}"
        for n in own
        if n in weights and weights[n].shape != own[n].shape
    ]
    problems = [f"missing {missing[0]}"] if missing else []
    problems += [f"unknown {extra[0]}"] if extra else []
    problems += shapes[:1]
    if problems:
        count = len(missing) + len(extra) + len(shapes)
        raise UserError(
            f"{source}: weights of another architecture: {'; '.join(problems)} ({count} differences in all)"
        )
    model.load_state_dict(dict(weights))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system frees it when the process ends, however it ends.

    Raises:
        Busy: another process holds it.
        UserError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise Busy(
            f"{folder}: another process is working here; wait for it or choose another --out"
        ) from None
    except OSError as e:
        raise UserError(f"{folder}: cannot be written: {one_line(e.strerror or e)}") from None
    try:
        for leftover in folder.rglob(".*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
