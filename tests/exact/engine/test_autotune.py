"""How fast to run is chosen once, by measurement where it pays, and then kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from robustbench_sparse.engine import autotune as module
from robustbench_sparse.engine.autotune import (
    LARGE_WORK,
    SMALL_WORK,
    Speed,
    for_attacks,
    recorded,
)
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.models import MODELS


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return MODELS["preact_resnet"](depth=8, widths=(4, 4, 8)).build(1, 8, 10).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("RBS_CACHE", str(tmp_path / "memory"))
    return tmp_path / "memory" / "speed.json"


def rates(monkeypatch: pytest.MonkeyPatch, **table: float) -> list[str]:
    """Puts rates in the place of the clock; returns what was measured, in order."""
    seen: list[str] = []

    def fake(tries: dict[str, object], images: int) -> dict[str, float]:
        seen.extend(tries)
        return {name: table.get(name.replace(" ", "_"), 100.0) for name in tries}

    monkeypatch.setattr(module, "_rates", fake)
    return seen


def test_little_work_is_done_plainly_without_a_measurement(
    network: nn.Module, x: torch.Tensor, memory: Path
) -> None:
    chosen = for_attacks(network, x, SMALL_WORK / 2)
    assert (chosen.precision, chosen.compile, chosen.batch_size) == ("fp32", False, 256)
    assert for_attacks(network, x, 1.0, precision="bf16", batch_size=7).precision == "bf16"
    assert for_attacks(network, x, 1.0, precision="bf16", batch_size=7).batch_size == 7
    assert not memory.exists()


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"), [(100.0, 300.0, "bf16"), (100.0, 101.0, "fp32"), (300.0, 100.0, "fp32")]
)
def test_the_faster_precision_is_taken_where_it_gains(
    network: nn.Module,
    x: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    fp32: float,
    bf16: float,
    expected: str,
) -> None:
    rates(monkeypatch, fp32=fp32, bf16=bf16)
    assert for_attacks(network, x, SMALL_WORK).precision == expected


@pytest.mark.parametrize(
    ("work", "ask", "quick", "expected"),
    [
        (LARGE_WORK, "auto", 300.0, True),
        (LARGE_WORK, "auto", 102.0, False),
        (LARGE_WORK, "off", 300.0, False),
        (LARGE_WORK / 2, "auto", 300.0, False),
        (LARGE_WORK / 2, "on", 50.0, True),
    ],
)
def test_compiling_is_taken_where_it_gains_and_pays(
    network: nn.Module,
    x: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    work: float,
    ask: str,
    quick: float,
    expected: bool,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda m: m)
    rates(monkeypatch, fp32_compiled=quick)
    assert for_attacks(network, x, work, precision="fp32", compile=ask).compile is expected


def test_a_measurement_is_made_once_per_machine_and_question(
    network: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, memory: Path
) -> None:
    seen = rates(monkeypatch, bf16=300.0)
    first = for_attacks(network, x, SMALL_WORK)
    count = len(seen)
    assert count > 0
    assert for_attacks(network, x, SMALL_WORK) == first
    assert len(seen) == count
    other = MODELS["mlp"]().build(1, 8, 10).eval()
    for_attacks(other, x, SMALL_WORK)
    assert len(seen) > count
    assert len(json.loads(memory.read_text())) == 2
    memory.write_text("not JSON")  # a damaged memory is no memory
    assert for_attacks(network, x, SMALL_WORK).precision == "bf16"


def test_measuring_for_real_leaves_weights_modes_and_streams_alone(
    network: nn.Module, x: torch.Tensor
) -> None:
    before, drawn = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    chosen = for_attacks(network, x, SMALL_WORK, compile="off")
    assert chosen.reason == "measured on this machine"
    assert all(rate > 0 for rate in chosen.measured.values())
    assert {"fp32", "bf16", "batch 128"} <= set(chosen.measured)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad for p in network.parameters())


def test_the_batch_grows_while_it_gains_and_fits_into_memory(
    network: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = iter([1000.0, 2000.0, 2001.0])
    monkeypatch.setattr(module, "_rates", lambda tries, images: {"size": next(grown)})
    assert module._batch_size(network, x, {}) == 256, "512 gains nothing"
    monkeypatch.setattr(module, "_rates", lambda tries, images: {"size": 10.0 * images})
    assert module._batch_size(network, x, {}) == 512
    monkeypatch.setattr(
        module, "_free_memory", lambda device: 300 * 4 * module._bytes_per_image(network, x[:2])
    )
    assert module._batch_size(network, x, {}) == 256
    held = module._bytes_per_image(network, x[:2])
    assert held == pytest.approx(module._bytes_per_image(network, x[:8]), rel=0.3)


class Wide(nn.Module):
    """One convolution of one pixel, then squares: the backward pass needs the input and C numbers a pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 1, bias=False).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).square().mean((2, 3))


def test_the_plain_batch_shrinks_where_images_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Wide(10).eval()
    # An image keeps 11 x 32 x 32 numbers of four bytes, and its gradients as many.
    small, image = torch.rand(4, 1, 32, 32), 2 * 4 * 11 * 32 * 32
    assert module._bytes_per_image(model, small[:1]) == image
    for fit in (256, 255, 100, 1):
        monkeypatch.setattr(module, "PLAIN_MEMORY", fit * image + 1)
        assert for_attacks(model, small, 1.0).batch_size == fit
    monkeypatch.setattr(module, "PLAIN_MEMORY", image / 2)
    assert for_attacks(model, small, 1.0).batch_size == 1
    assert for_attacks(model, small, 1.0, batch_size=9).batch_size == 9, "what was asked for"
    monkeypatch.setattr(module, "PLAIN_MEMORY", 1e9)
    assert for_attacks(model, torch.rand(1, 1, 1024, 1024), 1.0).batch_size == 10, "1e9 / (2 4 11 1024 1024)"
    monkeypatch.setattr(module, "PLAIN_MEMORY", 1e18)  # then a share of the machine's memory
    total = {"SC_PHYS_PAGES": 8 * image, "SC_PAGE_SIZE": 7}
    monkeypatch.setattr("os.sysconf", total.__getitem__)
    assert for_attacks(model, small, 1.0).batch_size == 7


def test_weights_do_not_count_as_an_images_memory(network: nn.Module) -> None:
    heavy = nn.Sequential(nn.Flatten(), nn.Linear(64, 5000), nn.Linear(5000, 1000)).eval()  # 21 MB of weights
    held = module._bytes_per_image(heavy, torch.rand(1, 1, 8, 8))
    assert held <= 2 * 4 * (64 + 5000 + 1000)


def test_a_network_that_cannot_be_asked_gets_the_plain_batch() -> None:
    class Leaves(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise SystemExit(1)

    assert for_attacks(Leaves(), torch.rand(2, 1, 8, 8), 1.0).batch_size == module.PLAIN_BATCH


def test_a_folder_keeps_its_choice(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    first = Speed(precision="bf16", batch_size=64, reason="measured", measured={"bf16": 3.0})
    assert recorded(path, "attacks", lambda: first) == first
    assert recorded(path, "training", Speed) == Speed()
    assert recorded(path, "attacks", lambda: pytest.fail("asked again")) == first
    path.write_text('{"attacks": {"precisoin": "bf16"}}')
    with pytest.raises(UserError, match=r"speed\.json: damaged"):
        recorded(path, "attacks", Speed)
