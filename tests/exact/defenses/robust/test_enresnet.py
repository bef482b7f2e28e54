"""EnResNet: how large the noise is, whom it couples, whose stream it draws from, what copies keep."""

from __future__ import annotations

import copy
import io
import math

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from attacks.base import GeneratorNoise, SampleRandom, Threat, is_stochastic, noise_from
from defenses import EnResNet, Ensemble, Step
from defenses.robust.draws import BatchRandom
from defenses.robust.enresnet import Noise, NoisyBlock, _moments


class Block(nn.Module):
    is_residual_block = True

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def network() -> nn.Module:
    return nn.Sequential(nn.Sequential(Block(), Block()), Block(), nn.Flatten(), nn.Linear(48, 5))


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, seed: int = 0) -> Step:
    return Step(model, None, Threat(), torch.Generator().manual_seed(seed), lambda *_: torch.empty(0))


def build(defense: EnResNet) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return defense.wrap(network)()


class Fixed:
    """The same numbers for an image whatever stands beside it."""

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(
            1, *like.shape[1:], generator=torch.Generator().manual_seed(2), dtype=like.dtype
        ).expand_as(like)


def test_noise_has_std_a_times_each_images_std() -> None:
    n = 3 * 64 * 64
    x = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([0.01, 0.1, 1, 2, 5, 10, 50, 100]).view(-1, 1, 1, 1) + 3
    noise = Noise(0.1, "sample")
    noise.noise_source = GeneratorNoise(torch.Generator().manual_seed(1))
    # In double: beside a mean of 3 the smallest noise, 0.001, would be rounded in single precision.
    added = (noise(x.double()) - x).flatten(1)
    ratio = added.std(1) / (0.1 * x.flatten(1).std(1))
    # The std of n normal numbers has relative standard error 1 / sqrt(2 n) = 0.64 %: four of them, 8 images.
    assert (ratio - 1).abs().max() < 4 / math.sqrt(2 * n)
    assert (added.mean(1) / added.std(1)).abs().max() < 4 / math.sqrt(n)


def test_batch_noise_has_std_a_times_the_batchs_std() -> None:
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    x = x * torch.logspace(-1, 1, 8).view(-1, 1, 1, 1)
    noise = Noise(0.3, "batch")
    noise.noise_source = GeneratorNoise(torch.Generator().manual_seed(1))
    added = noise(x) - x
    assert (added.std() / (0.3 * x.std())).item() == pytest.approx(1, abs=4 / math.sqrt(2 * x.numel()))
    each = added.flatten(1).std(1)
    assert (each / each.mean() - 1).abs().max() < 5 / math.sqrt(2 * x[0].numel())  # all images alike


def test_batch_scale_couples_images_and_sample_scale_does_not() -> None:
    for scale, coupled in (("sample", False), ("batch", True)):
        model = build(EnResNet(noise=0.3, scale=scale)).double().eval()  # type: ignore[arg-type]
        x = images().double()
        beside = torch.cat((x[:1], 40 * x[1:]))
        with noise_from(model, Fixed()), torch.no_grad():
            alone, among = model(x[:1]), model(beside)[:1]
        assert torch.allclose(alone, among, atol=1e-12) != coupled


def test_constant_images_get_no_noise_and_finite_gradients() -> None:
    x = torch.full((2, 3, 4, 4), 0.7, requires_grad=True)
    out = Noise(0.5, "sample")(x)
    assert torch.equal(out, x)
    out.square().sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_gradient_passes_through_the_std() -> None:
    noise = Noise(0.5, "sample")
    noise.noise_source = Fixed()
    x = images(2).double().requires_grad_(True)
    assert torch.autograd.gradcheck(noise, (x,))


@pytest.mark.parametrize("scale", ["sample", "batch"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_noise_and_its_gradients_are_those_of_the_formula(scale: str, channels_last: bool) -> None:
    x = images(3).double()
    x = (x.to(memory_format=torch.channels_last) if channels_last else x).requires_grad_(True)
    noise = Noise(0.5, scale)  # type: ignore[arg-type]
    noise.noise_source = Fixed()
    over = (1, 2, 3) if scale == "sample" else (0, 1, 2, 3)
    out, by_hand = noise(x), x + 0.5 * x.var(over, keepdim=True).sqrt() * Fixed().normal(x)
    torch.testing.assert_close(out, by_hand)
    assert out.stride() == x.stride()
    (got,), (wanted,) = (torch.autograd.grad(t.pow(3).sum(), x, create_graph=True) for t in (out, by_hand))
    torch.testing.assert_close(got, wanted)
    got, wanted = (torch.autograd.grad(g.square().sum(), x)[0] for g in (got, wanted))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", ["sample", "batch"])
def test_std_stands_a_large_mean_and_low_precision(dtype: torch.dtype, scale: str) -> None:
    x = torch.randn(4, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    x = (x + (1e4 if dtype == torch.float32 else 8)).to(dtype).to(memory_format=torch.channels_last)
    mean, std = _moments(x, scale)  # type: ignore[arg-type]
    over = (1, 2, 3) if scale == "sample" else (0, 1, 2, 3)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(std, x.double().std(over, keepdim=True).float(), rtol=3e-5, atol=0)
    torch.testing.assert_close(mean, x.double().mean(over, keepdim=True).float(), rtol=1e-6, atol=0)
    slow = _moments(x, scale, differentiable=True)  # type: ignore[arg-type]
    torch.testing.assert_close((mean, std), slow, rtol=3e-5, atol=0)
    assert Noise(0.1, scale)(x).dtype == dtype  # type: ignore[arg-type]


def test_training_noise_lies_in_memory_as_what_it_is_added_to() -> None:
    for format in (torch.contiguous_format, torch.channels_last):
        like = torch.empty(2, 3, 4, 5, dtype=torch.bfloat16).to(memory_format=format)
        drawn = BatchRandom(torch.Generator().manual_seed(3)).normal(like)
        assert (drawn.dtype, drawn.stride()) == (like.dtype, like.stride())
        in_order = drawn.permute(0, 2, 3, 1) if format == torch.channels_last else drawn
        row = torch.empty(120).normal_(generator=torch.Generator().manual_seed(3))
        assert torch.equal(in_order.flatten(), row.bfloat16())


def test_an_images_own_noise_does_not_depend_on_memory_layout() -> None:
    x, noise = images(3), Noise(0.5, "sample")
    outs = []
    for format in (torch.contiguous_format, torch.channels_last):
        noise.noise_source = SampleRandom.spawn(torch.Generator().manual_seed(9), 3)
        outs.append(noise(x.to(memory_format=format)))
    torch.testing.assert_close(outs[0], outs[1])


def test_every_residual_block_is_followed_by_noise() -> None:
    calls = []

    def make() -> nn.Module:
        calls.append(1)
        return network()

    model = EnResNet(members=3).wrap(make)()
    assert isinstance(model, Ensemble)
    assert len(calls) == 3
    wrapped = [m for m in model.modules() if isinstance(m, NoisyBlock)]
    assert len(wrapped) == 9 == sum(isinstance(m, Noise) for m in model.modules())
    assert sum(isinstance(m, Block) for m in model.modules()) == 9
    plain = EnResNet(members=3, noise=0.0).wrap(make)()
    assert not any(isinstance(m, NoisyBlock | Noise) for m in plain.modules())
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in model.parameters())


def test_a_network_that_is_one_block_is_wrapped_itself() -> None:
    model = EnResNet(members=1).wrap(Block)()
    assert isinstance(model.members[0], NoisyBlock)


def test_logits_are_the_mean_of_the_members() -> None:
    model = build(EnResNet(members=3, noise=0.0))
    x = images()
    members = [m(x) for m in model.members]
    assert not torch.allclose(members[0], members[1])
    torch.testing.assert_close(model(x), (members[0] + members[1] + members[2]) / 3)


def test_stochastic_says_whether_there_is_noise() -> None:
    assert is_stochastic(build(EnResNet()))
    plain = build(EnResNet(noise=0.0))
    assert not is_stochastic(plain)
    assert torch.equal(plain(images()), plain(images()))


def test_training_noise_comes_from_the_defenses_stream() -> None:
    model = build(EnResNet())
    s = step(model)
    EnResNet().begin(s)
    x, world = images(), torch.get_rng_state()
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), world)
    s.generator.manual_seed(0)  # put back in place, as a resuming run does
    assert torch.equal(model(x), first)
    with noise_from(model, SampleRandom.spawn(torch.Generator().manual_seed(9), len(x))):
        model(x)
    assert torch.equal(model(x), second)  # the binding survived, and nothing was drawn from it meanwhile


def test_noise_stays_on_at_test() -> None:
    model = build(EnResNet()).eval()
    assert not torch.equal(model(images()), model(images()))


def test_members_draw_noise_of_their_own() -> None:
    model = build(EnResNet())
    model.members[1].load_state_dict(model.members[0].state_dict())
    EnResNet().begin(step(model))
    assert not torch.equal(model.members[0](images()), model.members[1](images()))


def test_copies_leave_the_noise_source_behind() -> None:
    defense, model = EnResNet(), build(EnResNet())
    s = step(model)
    defense.begin(s)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (defense.deploy(model), copy.deepcopy(model), loaded):
        layers = [m for m in other.modules() if isinstance(m, Noise)]
        assert len(layers) == 6
        assert all(m.noise_source is None and m.a == 0.1 for m in layers)
    assert all(m.noise_source is not None for m in model.modules() if isinstance(m, Noise))
    weights = safetensors.torch.load(safetensors.torch.save(model.state_dict()))
    build(defense).load_state_dict(weights)
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_network_without_residual_blocks_is_refused() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    with pytest.raises(ValueError, match="noise: expected a network with residual blocks"):
        EnResNet().check(plain)
    EnResNet(noise=0.0).check(plain)
    EnResNet().check(network())
    EnResNet().check(build(EnResNet()))
