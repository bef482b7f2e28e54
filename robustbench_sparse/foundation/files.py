"""Files that are whole or not there: every write goes to a temporary file first and is renamed into place."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from robustbench_sparse.foundation import fences
from robustbench_sparse.foundation.errors import UserError, one_line, shown

_PICKLED = 1 << 28  # bytes of an old torch file in which its structure is looked for
TEMPORARY = ".rbs-"  # how the names of our temporary files begin: a folder may hold those of others


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write`` on a temporary file beside ``path``, flush it to the disk and rename it to ``path``.

    Raises:
        UserError: the disk is full, or the folder cannot be made or written; ``path`` is as it was.
        LeaseLost: what the path belongs to was taken over by another process.
    """
    try:
        _write(path, write)
    except OSError as e:
        raise UserError(f"{path}: cannot be written: {one_line(e.strerror or e)}") from None


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    place = fences.place_of(path)
    fences.check_held(path, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of a long name only the end: with the prefix it must still be a name that the system takes.
    prefix = f"{TEMPORARY}{path.name[-40:]}."
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=place or path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            # mkstemp makes files private; results are as readable as any other file of the user's.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            write(file)
            file.flush()
            os.fsync(file.fileno())
        fences.move(Path(name), path, place)
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
        if not path.is_file():
            raise FileNotFoundError(
                f"{'no regular' if path.exists() else 'no such'} file"
            )  # a pipe would block
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: cannot be read: {one_line(e)}") from None


def read_keys(path: Path, keys: Sequence[str], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Some keys of a JSON object; UserError when one without a default is missing."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged: expected an object, got {value!r}")
    value = {**(defaults or {}), **value}
    missing = [key for key in keys if key not in value]
    if missing:
        raise UserError(f"{path}: damaged: {missing[0]!r} is missing")
    return {key: value[key] for key in keys}


def read_as(path: Path, schema: type[BaseModel]) -> dict[str, Any]:
    """A JSON object whose keys are there and of the right kind, as it stands in the file; others may stand beside them.

    A key that is missing has the schema's default, if there is one.

    Raises:
        UserError: the file is damaged; it says where.
    """
    found: dict[str, Any] = read_json(path)
    try:
        schema.model_validate(found, strict=True)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100] or "the file"
        raise UserError(
            f"{path}: damaged: {where}: {one_line(first['msg'])}, got {shown(first['input'])}"
        ) from None
    optional = {name: field for name, field in schema.model_fields.items() if not field.is_required()}
    return {
        **{name: field.get_default(call_default_factory=True) for name, field in optional.items()},
        **found,
    }


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically."""
    data = save({name: w.detach().cpu().contiguous() for name, w in weights.items()})
    write_atomically(path, lambda f: f.write(data))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read weights: safetensors, or torch's format restricted to tensors. Neither can run code.

    Raises:
        UserError: missing, truncated or damaged file, or one that holds more than tensors.
    """
    state = read_state(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    return tensors_of(state, path)


def read_state(path: Path) -> Any:
    """What a file of weights holds: tensors by name, or whatever plain values a torch file has around them.

    Raises:
        UserError: missing, truncated or damaged file, or one that could run code.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: {'no regular' if path.exists() else 'no such'} file")
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_claims(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch's advice on pickle protocols; what matters is said below
            # Settings of a training stand in many files as a Namespace, which is plain values by name.
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused: the file is damaged or could run code; save it as safetensors"
        ) from None
    except UserError:
        raise
    except Exception as e:  # what the readers raise on a damaged file is not documented
        reason = one_line(e)[:200] or type(e).__name__
        raise UserError(f"{path}: not a readable checkpoint: {reason}") from None


def tensors_of(state: Any, path: Path) -> dict[str, Tensor]:
    """Plain tensors by name, as a file at ``path`` should hold them; UserError for anything else."""
    whole = isinstance(state, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    )
    if not whole:
        raise UserError(f"{path}: expected tensors by parameter name (a state_dict)")
    named: dict[str, Tensor] = state
    for name, w in named.items():
        if w.layout is not torch.strided or w.device.type != "cpu" or w.is_quantized or w.is_nested:
            what = "nested" if w.is_nested else f"{w.dtype}, {w.layout}, on {w.device}"
            raise UserError(f"{path}: {shown(name)}: expected a plain tensor, got one that is {what}")
    return named


def _check_claims(path: Path) -> None:
    """UserError for a torch file that claims to hold more than it does: reading it would fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            claimed = sum(info.file_size for info in parts)
            if claimed > 2 * path.stat().st_size + (1 << 20):
                raise UserError(
                    f"{path}: refused: its parts claim {claimed} bytes, more than the file can hold"
                )
            pickles = [archive.read(info) for info in parts if info.filename.endswith(".pkl")]
    else:  # the format of before zips: tensors are read from the file itself, behind the pickles
        with path.open("rb") as file:
            pickles = [file.read(_PICKLED)]
    # Torch lets files make arrays of bytes, of any length and filled; no tensor needs them.
    if any(b"\nbytearray\n" in pickled for pickled in pickles):
        raise UserError(f"{path}: refused: it holds more than tensors; save it as safetensors")


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load weights into a network; UserError naming what does not fit when they belong to another one.

    A buffer without values, such as statistics that are not measured yet, may take over the file's shape.
    """
    own, parameters = model.state_dict(), {name for name, _ in model.named_parameters()}
    missing = [n for n in own if n not in weights]
    extra = [n for n in weights if n not in own]
    shapes = [
        f"{n} is {tuple(weights[n].shape)}, expected {tuple(own[n].shape)}"
        for n in own
        if n in weights and weights[n].shape != own[n].shape and (n in parameters or own[n].numel() > 0)
    ]
    problems = [f"missing {missing[0]}"] if missing else []
    problems += [f"unknown {extra[0]}"] if extra else []
    problems += shapes[:1]
    strange = [] if problems else [p for n in own if (p := _strange(n, weights[n], own[n], parameters))]
    if strange:
        raise UserError(f"{source}: {strange[0]} ({len(strange)} such tensors)")
    if problems:
        count = len(missing) + len(extra) + len(shapes)
        raise UserError(
            f"{source}: weights of another architecture: {'; '.join(problems)} ({count} differences in all)"
        )
    try:
        model.load_state_dict(dict(weights))
    except (RuntimeError, TypeError, NotImplementedError) as e:
        raise UserError(f"{source}: its weights do not fit: {one_line(e)[:200]}") from None


def _strange(name: str, weight: Tensor, own: Tensor, parameters: Set[str]) -> str:
    """Why a tensor cannot stand for one of the network's, or an empty string."""
    if weight.is_complex() or weight.is_floating_point() != own.is_floating_point():
        return f"{name} is {weight.dtype}, expected {own.dtype}"
    try:
        values = weight.float() if weight.is_floating_point() else weight
    except RuntimeError:  # of the smallest formats torch converts not all
        return f"{name} is {weight.dtype}, expected {own.dtype}"
    if bool(values.isnan().any()) or (name in parameters and not bool(values.isfinite().all())):
        return f"{name} has values that are not finite"
    return ""


def check_free(paths: Iterable[Path], force: bool) -> None:
    """UserError for the first file that is there already, unless ``--force`` may write over it."""
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise UserError(f"{there[0]}: is there already; --force writes over it")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors' names, types, shapes and values, whatever order they stand in, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """The value as JSON gives it back: tuples become lists."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def cache_folder(cache: Path | None) -> Path:
    """The folder of decoded images: the argument, $RBS_CACHE, or ``~/.cache/robustbench_sparse``."""
    default = os.environ.get("RBS_CACHE") or "~/.cache/robustbench_sparse"
    return (cache or Path(default)).expanduser().absolute()
