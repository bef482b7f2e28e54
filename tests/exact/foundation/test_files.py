"""Files of weights: what is taken, and what is refused in one line that names the file."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from robustbench_sparse.foundation.errors import LONGEST, UserError
from robustbench_sparse.foundation.files import fill, load_weights
from robustbench_sparse.runs.shrunk_file import record_of
from robustbench_sparse.runs.targets import resolve_target

ENDINGS = [".pt", ".pth", ".safetensors"]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def state(**changes: Any) -> dict[str, Any]:
    """The network's weights, all of them 0.5 and all statistics 1."""
    own = {n: torch.ones_like(w) / (1 if "1." in n else 2) for n, w in net().state_dict().items()}
    return {
        **own,
        "1.num_batches_tracked": torch.tensor(3),
        **{n.replace("_0_", "0."): v for n, v in changes.items()},
    }


def write(path: Path, value: Any) -> Path:
    if path.suffix == ".safetensors":
        path.write_bytes(save(value))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=path.suffix == ".pt")
    return path


def error(path: Path) -> str:
    """The one line that reading the file, and filling a network with it, ends with."""
    with pytest.raises(UserError) as caught:
        fill(net(), load_weights(path), path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= LONGEST
    assert str(path) in message
    return message


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_precision_are_converted(tmp_path: Path, ending: str, dtype: torch.dtype) -> None:
    path, model = (
        write(tmp_path / f"w{ending}", state(_0_weight=torch.full((2, 3), 0.25, dtype=dtype))),
        net(),
    )
    fill(model, load_weights(path), path)
    weight = model.state_dict()["0.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, torch.full((2, 3), 0.25))


def test_a_nested_state_dict_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", {"state_dict": state(), "epoch": 3})
    assert load_weights(path).keys() == net().state_dict().keys()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_other_kinds_of_numbers_are_refused(tmp_path: Path, ending: str, dtype: torch.dtype) -> None:
    path = write(tmp_path / f"w{ending}", state(_0_weight=torch.ones(2, 3).to(dtype)))
    assert f"0.weight is {dtype}, expected torch.float32 (1 such tensors)" in error(path)


def test_a_counter_that_is_no_integer_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", {**state(), "1.num_batches_tracked": torch.tensor(0.5)})
    assert "1.num_batches_tracked is torch.float32, expected torch.int64" in error(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    weight = torch.zeros(2, 3, dtype=torch.float64)
    weight[1, 2] = value
    path = write(tmp_path / "w.safetensors", state(_0_weight=weight))
    assert "0.weight has values that are not finite (1 such tensors)" in error(path)


def test_statistics_may_be_infinite_but_not_nan(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", {**state(), "1.running_var": torch.tensor([1.0, float("inf")])})
    fill(net(), load_weights(path), path)
    write(path, {**state(), "1.running_var": torch.tensor([1.0, float("nan")])})
    assert "1.running_var has values that are not finite" in error(path)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.sparse_coo": Tensor.to_sparse,
    "on meta": lambda t: t.to("meta"),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "torch.qint8": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("what", LAYOUTS)
def test_tensors_of_other_layouts_are_refused(tmp_path: Path, what: str) -> None:
    message = error(write(tmp_path / "w.pt", state(_0_weight=LAYOUTS[what](torch.ones(2, 3)))))
    assert "'0.weight': expected a plain tensor, got one that is " in message
    assert what in message


def test_formats_that_torch_cannot_convert_are_refused(tmp_path: Path) -> None:
    if not hasattr(torch, "float4_e2m1fn_x2"):
        kind, weight = "torch.uint16", torch.zeros(2, 3, dtype=torch.uint16)
    else:
        kind = "torch.float4_e2m1fn_x2"
        weight = torch.zeros(2, 3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    assert f"0.weight is {kind}, expected torch.float32" in error(
        write(tmp_path / "w.pt", state(_0_weight=weight))
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({1: torch.zeros(2)}, "expected tensors by parameter name"),
        ({"0.weight": 3}, "expected tensors by parameter name"),
        ({"model": {"0.weight": torch.zeros(2, 3)}}, "expected tensors by parameter name"),
        ([1], "expected tensors by parameter name"),
        (None, "expected tensors by parameter name"),
        ({"0.weight": torch.zeros(2, 3)}, "missing 0.bias"),
        ({**state(), "\x1b[31m\n": torch.zeros(2)}, "unknown \\x1b[31m (1 differences in all)"),
        (state(_0_weight=torch.zeros(())), "0.weight is (), expected (2, 3)"),
        (state(_0_weight=torch.zeros(1).expand(10**12)), "0.weight is (1000000000000,), expected (2, 3)"),
    ],
)
def test_other_values_are_refused(tmp_path: Path, value: Any, expected: str) -> None:
    assert expected in error(write(tmp_path / "w.pt", value))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "data", [b"", b"<!DOCTYPE html>", b"\x80\x02", b"PK\x03\x04", b"[" * 99_999], ids=lambda data: data[:9]
)
def test_other_files_are_refused(tmp_path: Path, ending: str, data: bytes) -> None:
    path = tmp_path / f"w{ending}"
    path.write_bytes(data)
    assert error(path)


class Harm:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_no_code_of_a_file_runs(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"w{ending}", {"0.weight": Harm(tmp_path / "mark")})
    assert "could run code; save it as safetensors" in error(path)
    assert not (tmp_path / "mark").exists()


class Long:
    """Unpickling it takes as much memory as it says, from a few bytes."""

    def __reduce__(self) -> Any:
        return bytearray, (1000,)


@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_arrays_of_bytes_are_not_made(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / f"w{ending}", {"0.weight": Long()})
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    assert "refused: it holds more than tensors" in error(path)


def test_claims_of_a_zips_parts_are_held_against_the_file(tmp_path: Path) -> None:
    path, parts = tmp_path / "w.pt", {"w/data.pkl": pickle.dumps({}, 2), "w/data/0": bytes(20 << 20)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    claimed = sum(map(len, parts.values()))
    assert path.stat().st_size < claimed / 100
    assert f"its parts claim {claimed} bytes, more than the file can hold" in error(path)


def test_claims_of_older_files_take_no_memory(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"0.weight": torch.zeros(2, 3)}, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    at = data.index(b"K\x06", data.index(b"FloatStorage"))  # its six numbers become 2^40
    path = tmp_path / "w.pth"
    path.write_bytes(data[:at] + b"\x8a\x06" + struct.pack("<q", 2**40)[:6] + data[at + 2 :])
    assert "not a readable checkpoint" in error(path)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("read", [load_weights, record_of])
def test_only_regular_files_are_opened(tmp_path: Path, ending: str, read: Callable[[Path], object]) -> None:
    for name in ("pipe", "device", "folder"):
        path = tmp_path / f"{name}{ending}"
        if name == "pipe":
            os.mkfifo(path)
        elif name == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: no regular file"
    for path, expected in (
        (tmp_path / f"none{ending}", "no such file"),
        (Path("x" * 300), "File name too long"),
    ):
        with pytest.raises(UserError, match=expected):
            read(path)


def test_a_target_of_any_name_is_a_line() -> None:
    with pytest.raises(UserError, match="x: File name too long"):
        resolve_target("x" * 300)
