"""EnResNet's noise out of counters: the same formula, the same numbers compiled or not, in any batch and any layout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from attacks.base import SampleRandom, Silence, noise_from
from attacks.philox import normals, table, words
from defenses import EnResNet
from defenses.robust import counted_noise
from defenses.robust.counted_noise import Sweep, drawn
from defenses.robust.draws import BatchRandom
from defenses.robust.enresnet import Noise, NoisyBlock

SHAPE = (6, 8, 5, 7)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 6).view(
        -1, 1, 1, 1
    )
    return (x + 3).to(dtype).contiguous(memory_format=torch.channels_last)


def batch() -> BatchRandom:
    return BatchRandom(torch.Generator().manual_seed(1))


def passed(noise: Noise, x: Tensor, source: SampleRandom) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of a fixed weighing of it."""
    point = x.clone().requires_grad_(True)
    with noise_from(noise, source):
        out = noise(point)
    weights = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    (grad,) = torch.autograd.grad((out * weights[: len(x)]).sum(), point)
    return out.detach(), grad


def formula(x: Tensor, z: Tensor, a: float, scale: str) -> tuple[Tensor, Tensor]:
    point = x.double().requires_grad_(True)
    std = point.std() if scale == "batch" else point.flatten(1).std(1).view(-1, 1, 1, 1)
    out = point + a * std * z.double()
    weights = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    (grad,) = torch.autograd.grad((out * weights.double()).sum(), point)
    return out.detach(), grad


@pytest.mark.parametrize("scale", ["sample", "batch"])
def test_it_is_the_formula_with_these_numbers(scale: str) -> None:
    x = images()
    out, grad = passed(Noise(0.3, scale, "counters"), x, batch())  # type: ignore[arg-type]
    expected, slope = formula(x, drawn(x, batch().counters(6)), 0.3, scale)
    assert torch.allclose(out.double(), expected, atol=1e-5)
    assert torch.allclose(grad.double(), slope, atol=1e-5)


def test_numbers_are_counted_in_the_order_of_channels_last_however_a_tensor_lies() -> None:
    x, counters = images(), batch().counters(6)
    rows = normals(*counters, math.prod(SHAPE[1:])).view(6, 5, 7, 8)
    for like in (x, x.contiguous()):
        assert torch.equal(drawn(like, counters).permute(0, 2, 3, 1), rows)
    flat = x.flatten(1)
    assert torch.equal(drawn(flat, counters), rows.flatten(1))
    noise = Noise(0.3, "sample", "counters")
    assert torch.allclose(passed(noise, x, batch())[0], passed(noise, x.contiguous(), batch())[0], atol=1e-6)


def test_an_images_noise_does_not_depend_on_who_is_beside_it() -> None:
    x, noise = images(), Noise(0.3, "sample", "counters")
    some = torch.tensor([3, 0])
    together = passed(noise, x, SampleRandom.for_images(0, "x", range(6)))[0]
    alone = passed(noise, x[some], SampleRandom.for_images(0, "x", range(6)).subset(some))[0]
    assert torch.equal(alone, together[some])


def test_silence_is_silent() -> None:
    x, noise = images(), Noise(0.3, "sample", "counters")
    with noise_from(noise, Silence()):
        assert torch.equal(noise(x), x)


def test_a_second_derivative_goes_through_the_std() -> None:
    noise = Noise(0.3, "sample", "counters")
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def f(t: Tensor) -> Tensor:
        with noise_from(noise, batch()):
            out: Tensor = noise(t)
        return out

    assert torch.autograd.gradgradcheck(f, (x,))


class Block(nn.Conv2d):
    is_residual_block = True


@pytest.mark.parametrize("draws", ["streams", "counters"])
def test_a_setting_of_enresnet(draws: str) -> None:
    def one() -> nn.Module:
        return nn.Sequential(Block(3, 3, 1))

    model = EnResNet(members=2, draws=draws).wrap(one)()  # type: ignore[arg-type]
    found = [m.noise.draws for m in model.modules() if isinstance(m, NoisyBlock)]
    assert found == [draws] * 2
    with pytest.raises(ValueError, match="draws"):
        EnResNet(draws="counted")  # type: ignore[arg-type]


def test_members_and_layers_draw_numbers_of_their_own() -> None:
    noise = Noise(1.0, "sample", "counters")
    x = images()
    source = SampleRandom.for_images(0, "x", range(6))
    added = torch.stack([(passed(noise, x, source)[0] - x).flatten() for _ in range(3)])
    assert (torch.corrcoef(added) - torch.eye(3)).abs().max() < 5 / math.sqrt(200)


def test_where_compiling_fails_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler")

    sweep = Sweep(words)
    sweep._compiled = broken
    with pytest.warns(UserWarning, match="compiling failed"):
        assert sweep(torch.tensor([0])) is None
    assert sweep(torch.tensor([0])) is None
    monkeypatch.setattr(counted_noise, "_WORDS", sweep)
    monkeypatch.setattr(counted_noise, "MANY", 1)
    out, grad = passed(Noise(0.3, "sample", "counters"), images(), batch())
    monkeypatch.undo()
    plain, slope = passed(Noise(0.3, "sample", "counters"), images(), batch())
    assert torch.equal(out, plain)
    assert torch.equal(grad, slope)


@pytest.mark.slow
def test_compiled_numbers_are_the_same_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, places = torch.arange(5) * 0x1234567890ABCDEF, torch.arange(5)
    assert torch.equal(counted_noise._WORDS(keys, places, 37), words(keys, places, 37))
    i = torch.arange(65536).view(2, -1)
    low, high = (i & 255).to(torch.uint8), (i >> 8).to(torch.uint8)
    assert torch.equal(counted_noise._NORMALS(low, high, torch.float32).flatten(), table(torch.device("cpu")))

    noise = Noise(0.3, "sample", "counters")
    for dtype, atol in ((torch.float32, 1e-5), (torch.bfloat16, 0.125)):  # bfloat16: two steps at 8
        x = images(dtype)
        x[2] = 1.7  # constant: no noise, and the gradient goes on unchanged
        plain = passed(noise, x, batch())
        with monkeypatch.context() as m:
            m.setattr(counted_noise, "MANY", 1)
            made = counted_noise.noised(x, batch().counters(6), 0.3)
            assert made is not None
            assert torch.equal(made[1], drawn(x, batch().counters(6)))
            out, grad = passed(noise, x, batch())
        assert torch.equal(out[2], x[2])
        std = (made[3].flatten() / (math.prod(SHAPE[1:]) - 1)).sqrt().tolist()
        assert std[2] == 0
        assert (out - plain[0]).abs().max() <= atol
        assert (grad - plain[1]).abs().max() <= atol
        assert std == pytest.approx(x.float().flatten(1).std(1).tolist(), rel=1e-4, abs=1e-6)
