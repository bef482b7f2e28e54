"""Files of weights that were damaged, or made to harm: ``python -m tests.fuzz.weights_mutants --count 3000 --seed 0``.

Each is loaded into a small network. It has to be taken as it is, or refused in one line that names the file. Exit code
1 where something else came.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import struct
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from robustbench_sparse.foundation.files import fill, load_weights
from robustbench_sparse.runs.shrunk_file import record_of
from robustbench_sparse.runs.targets import resolve_target
from tests.fuzz.common import command, fault, watched

KINDS = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
KINDS += [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16]
LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    Tensor.to_sparse,
    lambda t: t.to("meta"),
    lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    lambda t: t.reshape(-1)[:1].expand(10**12),
    nn.Parameter,
]
SPECIAL: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a loop": lambda path: path.symlink_to(path),
    "nothing": lambda path: None,
}


def net() -> nn.Module:
    """A small network with parameters and statistics."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))


class Harm:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (open, (str(self.mark), "w"))


class Long:
    """Unpickling it takes 4 GB."""

    def __reduce__(self) -> Any:
        return (bytearray, (4 * 10**9,))


def mutant(chance: random.Random, mark: Path) -> tuple[str, bytes, str]:
    """A file's ending, its bytes, and what was done."""
    torch.manual_seed(0)
    state: dict[str, Any] = dict(net().state_dict())
    ending = chance.choice([".safetensors", ".pt", ".pth"])
    done = chance.choice(
        ["cut", "bytes", "dtype", "shape", "nan", "keys", "nested", "object", "header", "foreign", "layout"]
    )
    name = chance.choice(list(state))
    if done == "dtype":
        state[name] = state[name].to(chance.choice(KINDS))
    elif done == "shape":
        shape = chance.choice([(), (0,), (1,), (3, 3), (10, 144), (1,) * 20])
        state[name] = torch.zeros(shape)
    elif done == "nan":
        state[name] = torch.full_like(
            state[name].float(), chance.choice([float("nan"), float("inf"), float("-inf")])
        )
    elif done == "keys":
        value = state.pop(name)
        state[chance.choice(["", "x" * 3000, f"module.{name}", "../x", "\x1b[31m", "\n"])] = value
    elif done == "nested" and ending != ".safetensors":
        state = {chance.choice(["state_dict", "model", "x"]): chance.choice([state, {}, [state], None])}
    elif done == "layout" and ending != ".safetensors":
        state[name] = chance.choice(LAYOUTS)(state[name].float())
    elif done == "object" and ending != ".safetensors":
        state[name] = chance.choice([Harm(mark), Long(), "text", 3, None, [1], {"a": torch.zeros(2)}, {1, 2}])
        if chance.random() < 0.3:
            state = chance.choice([Harm(mark), [1], None, torch.zeros(3), 7])  # type: ignore[assignment]
    data = written(state, ending)
    if done == "cut":
        data = data[: chance.randrange(len(data))]
    elif done == "bytes":
        changed = bytearray(data)
        for _ in range(chance.choice([1, 3, 20])):
            changed[chance.randrange(min(len(changed), chance.choice([64, 2000, 10**9])))] = chance.randrange(
                256
            )
        data = bytes(changed)
    elif done == "header":
        data = claims(chance, ending)
    elif done == "foreign":
        data = strange(chance, mark)
    return ending, data, done


def written(state: Any, ending: str) -> bytes:
    """The state as a file of this ending."""
    if ending == ".safetensors":
        return save({k: v for k, v in state.items() if isinstance(v, Tensor)})
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=ending == ".pt")
    return buffer.getvalue()


def claims(chance: random.Random, ending: str) -> bytes:
    """A file that claims to hold more than it does."""
    if ending == ".safetensors":
        size = chance.choice([0, 8, 2**31, 2**40, 2**63 - 1])
        header = {
            "0.weight": {
                "dtype": chance.choice(["F32", "C64", "X9"]),
                "shape": [size],
                "data_offsets": [0, size],
            }
        }
        text = json.dumps(header).encode()
        return struct.pack("<Q", chance.choice([len(text), 2**40, 0])) + text
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", bytes(chance.choice([1, 5 * 10**7])))
    return buffer.getvalue()


def strange(chance: random.Random, mark: Path) -> bytes:
    """A file of another kind."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"), None)
    kinds = [
        b"",
        b"<!DOCTYPE html><html>404</html>",
        tar.getvalue(),
        pickle.dumps(Harm(mark)),
        b"\x80\x02",
        b"PK\x03\x04",
    ]
    return chance.choice([*kinds, b"\x93NUMPY", bytes(range(256)) * 8, b"[" * 100_000])


def load(path: Path) -> None:
    """As ``evaluate`` and ``sparsity`` do it."""
    record_of(path)
    fill(net(), load_weights(path), path)


def main(count: int, seed: int) -> list[str]:
    """Try so many mutants; everything that went wrong, a line each."""
    with tempfile.TemporaryDirectory() as scratch, watched() as found, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on formats that it means to leave
        mark = Path(scratch) / "harm"
        for number in range(count):
            chance = random.Random(f"{seed}/{number}")
            ending, data, done = mutant(chance, mark)
            path = Path(scratch) / f"weights{ending}"
            path.write_bytes(data)
            calls = [lambda p=path: load(p), lambda p=path: resolve_target(p)]
            found += [
                f"{number} {ending} {done}: {f}" for call in calls if (f := fault(call, re.escape(path.name)))
            ]
            if mark.exists():
                found.append(f"{number} {ending} {done}: code ran")
                mark.unlink()
            path.unlink()
        for done, make in SPECIAL.items():
            for ending in (".safetensors", ".pt", ".pth"):
                path = Path(scratch) / f"special{done}{ending}"
                make(path)
                found += [f"{done} {ending}: {f}" for f in [fault(lambda p=path: load(p), path.name)] if f]
    return found


if __name__ == "__main__":
    command(__doc__, 3000, "files of weights", main)
