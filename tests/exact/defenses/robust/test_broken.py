"""Networks broken on purpose: they look robust to PGD, for the reason they are meant to, and change nothing else."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attacks import APGD, PGD, SampleRandom, Threat
from attacks.base import RandomModule, is_stochastic, noise_from
from defenses import Broken, Step
from defenses.robust.broken import (
    BatchNoise,
    ConstantGradient,
    How,
    InputNoise,
    Jpeg,
    KWinners,
    ScaledLogits,
    SigmoidOutputs,
    Staircase,
)
from robustbench_sparse.engine.batchnorm_folding import pairs_of, stems_of
from robustbench_sparse.engine.fast import FastNetwork

EVAL_ONLY = sorted(set(get_args(How)) - {"none", "k_wta"})
RANDOM = ["batch_noise", "noise"]
ZERO_GRADIENT = ["gradient_killer", "jpeg", "quantised_input"]
THREAT = Threat(eps=0.15)


def broken(how: str, strength: float | None = None) -> Broken:
    return Broken(how=how, strength=strength)  # type: ignore[arg-type]


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 5),
    )


def build(defense: Broken, make: Callable[[], nn.Module] = mlp) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return defense.wrap(make)()


def streams(count: int, seed: int = 0) -> SampleRandom:
    return SampleRandom.for_images(seed, "test", range(count))


def pictures(count: int = 4, size: int = 8) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels for training, images and labels to judge by."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(data.images / 16, dtype=torch.float32)[order, None], torch.tensor(data.target)[order]
    return x[:1400], y[:1400], x[1400:1600], y[1400:1600]


def train(model: nn.Module, epochs: int) -> nn.Module:
    x, y, _, _ = digits()
    optimizer = torch.optim.Adam(model.train().parameters(), 3e-3)
    order = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


@functools.cache
def trained(how: str, strength: float | None = None) -> nn.Module:
    """A network that has learnt the digits; weights of kinds that act in eval mode only are the twin's."""
    model = build(broken(how, strength))
    if how in ("none", "k_wta"):
        return train(model, 20)
    model.network.load_state_dict(trained("none").state_dict())
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with noise_from(model, streams(len(x), 5)):
        return (model(x).argmax(1) == y).double().mean().item()


def robust(model: nn.Module, attack: PGD | APGD) -> float:
    _, _, x, y = digits()
    return accuracy(model, attack(model, x, y, THREAT, streams(len(x))), y)


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    point = x.clone().requires_grad_(True)
    with noise_from(model, streams(len(x))):
        (out,) = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
    return out


# Looking robust ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", sorted({*EVAL_ONLY, "k_wta"}))
def test_default_strength_keeps_the_clean_accuracy(how: str) -> None:
    _, _, x, y = digits()
    twin = accuracy(trained("none"), x, y)
    assert twin > 0.93
    lost = {"k_wta": 0.15, "batch_noise": 0.08, "noise": 0.05}.get(how, 0.015)
    assert accuracy(trained(how), x, y) >= twin - lost


@pytest.mark.parametrize("how", sorted({*EVAL_ONLY, "k_wta"} - {*RANDOM}))
def test_pgd_breaks_the_twin_and_takes_the_broken_network_for_robust(how: str) -> None:
    attack = PGD(steps=20)
    assert robust(trained("none"), attack) < 0.1
    assert robust(trained(how), attack) > (0.3 if how == "k_wta" else 0.5)


@pytest.mark.parametrize("how", sorted({*EVAL_ONLY} - {*RANDOM}))
def test_what_breaks_the_twin_breaks_networks_that_look_robust(how: str) -> None:
    _, _, x, y = digits()
    found = PGD(steps=20)(trained("none"), x, y, THREAT, streams(len(x)))
    changed = how in ("jpeg", "quantised_input")  # they take part of the perturbation away
    assert accuracy(trained(how), found, y) < (0.5 if changed else 0.1)


def test_a_loss_without_scale_breaks_scaled_logits() -> None:
    model, steps = trained("scaled_logits"), 20
    assert robust(model, APGD(steps=steps, loss="ce")) > 0.5
    assert robust(model, APGD(steps=steps, loss="dlr")) < 0.1


def test_averaged_gradients_get_further_through_noise() -> None:
    model = trained("noise", 0.2)
    assert robust(model, PGD(steps=10, eot=16)) < robust(model, PGD(steps=10)) - 0.02


# Why --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["scaled_logits", "sigmoid_outputs", "constant_gradient"])
def test_decisions_are_those_of_the_twin(how: str) -> None:
    _, _, x, _ = digits()
    assert torch.equal(trained(how)(x).argmax(1), trained("none")(x).argmax(1))


@pytest.mark.parametrize("how", ZERO_GRADIENT)
def test_gradient_is_exactly_zero(how: str) -> None:
    _, _, x, y = digits()
    x = (x + 0.01).clamp(0, 1)  # off the stairs' edges
    assert gradient(trained("none"), x, y).count_nonzero() > 0
    assert gradient(trained(how), x, y).count_nonzero() == 0


def test_scaled_logits_have_no_gradient_where_they_are_right() -> None:
    _, _, x, y = digits()
    model = trained("scaled_logits")
    torch.testing.assert_close(model(x), 1000 * trained("none")(x))
    top = trained("none")(x).topk(2).values
    clear = (model(x).argmax(1) == y) & (top[:, 0] - top[:, 1] > 0.2)
    assert clear.double().mean() > 0.9
    assert gradient(model, x, y)[clear].count_nonzero() == 0
    assert gradient(trained("none"), x, y)[clear].flatten(1).any(1).all()


def test_sigmoid_outputs_are_bounded_and_their_own_class_cannot_be_pushed_down() -> None:
    _, _, x, y = digits()
    plain, model = trained("none"), trained("sigmoid_outputs")
    out = model(x)
    torch.testing.assert_close(out, torch.sigmoid(2 * plain(x)))
    assert out.min() >= 0
    assert out.max() <= 1
    z = plain(x).detach().requires_grad_(True)
    (slopes,) = torch.autograd.grad(F.cross_entropy(model.after(z), y, reduction="sum"), z)
    own = slopes.gather(1, y[:, None])[:, 0].abs()
    assert own.median() < 1e-4
    assert (own == 0).double().mean() > 0.1  # saturated to the last bit


def test_constant_gradient_is_the_same_whatever_comes_in() -> None:
    _, _, x, y = digits()
    model = trained("constant_gradient")
    assert torch.equal(gradient(model, x, y), torch.ones_like(x))
    assert torch.equal(gradient(model, x, (y + 1) % 10), torch.ones_like(x))
    assert torch.equal(model(x), trained("none")(x))


def test_a_staircase_rounds_to_its_steps() -> None:
    stairs = Staircase(4).eval()
    x = torch.tensor([0.0, 0.1, 0.124, 0.125, 0.3, 0.375, 0.9, 1.0])
    assert stairs(x).tolist() == [0, 0, 0, 0.25, 0.25, 0.5, 1, 1]


def test_gradient_killer_changes_nothing_that_can_be_seen() -> None:
    x = pictures(2, 32)
    fine, coarse = (build(broken(how)).eval().before for how in ("gradient_killer", "quantised_input"))
    assert (fine(x) - x).abs().max() <= 0.5 / 4096 < 0.05 / 255
    assert (coarse(x) - x).abs().max() > 10 / 255
    assert len(coarse(x).unique()) == 9


# k winners --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 40), (5, 4, 3, 5)])
def test_exactly_the_winners_are_kept(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    for layer in (KWinners(0.2), KWinners(0.2).eval()):
        out = layer(x)
        n = x[0].numel()
        assert (out.flatten(1) != 0).sum(1).tolist() == [n // 5] * 5
        for before, after in zip(x.flatten(1), out.flatten(1), strict=True):
            winners = before.argsort(descending=True)[: n // 5]
            assert torch.equal(after[winners], before[winners])
        (slope,) = torch.autograd.grad(out.sum(), x)
        assert torch.equal(slope, (out != 0).float())


def test_equals_share_the_places_and_one_always_wins() -> None:
    assert (KWinners(0.25)(torch.ones(3, 8)) != 0).sum(1).tolist() == [2, 2, 2]
    assert (KWinners(0.01)(torch.ones(3, 8)) != 0).sum(1).tolist() == [1, 1, 1]
    x = -torch.rand(2, 8)
    assert torch.equal(KWinners(1.0)(x), x)


def test_winners_replace_every_activation_and_keep_the_names() -> None:
    shared = nn.ReLU()

    def make() -> nn.Module:
        inner = nn.Sequential(nn.Tanh(), nn.Linear(4, 4), nn.Sigmoid(), nn.ELU())
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), shared, inner, shared, nn.Linear(4, 3))

    model = broken("k_wta", 0.5).wrap(make)()
    assert sum(isinstance(m, KWinners) for m in (*model, *model[3])) == 5
    assert not any(isinstance(m, nn.ReLU | nn.Tanh | nn.Sigmoid | nn.ELU) for m in model.modules())
    assert list(model.state_dict()) == list(make().state_dict())
    assert isinstance(broken("k_wta").wrap(nn.ReLU)(), KWinners)


def test_winners_need_activations_to_replace() -> None:
    defense = broken("k_wta")
    with pytest.raises(ValueError, match="how: expected a network with activation modules"):
        defense.check(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    defense.check(mlp())
    defense.check(build(defense))
    broken("jpeg").check(nn.Flatten())


# Noise ------------------------------------------------------------------------------------------------------


class Fixed:
    """The same numbers for an image whatever stands beside it."""

    def normal(self, like: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(2)
        return torch.randn(1, *like.shape[1:], generator=g).to(like.dtype).expand_as(like)


@pytest.mark.parametrize("how", RANDOM)
def test_only_batch_noise_couples_images(how: str) -> None:
    model = build(broken(how), convolutional).double().eval()
    x = pictures().double()
    beside = torch.cat((x[:1], 0 * x[1:]))
    with noise_from(model, Fixed()), torch.no_grad():
        alike = torch.allclose(model(x)[:1], model(beside)[:1], atol=1e-9)
    assert alike == (how == "noise")


def test_noise_has_the_size_that_was_asked_for() -> None:
    x = 0.2 * torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + 0.5
    for layer, wanted in ((BatchNoise(0.5).eval(), 0.1), (InputNoise(0.3).eval(), 0.3)):
        layer.noise_source = streams(8)
        assert (layer(x) - x).std().item() == pytest.approx(wanted, rel=0.02)
    flat = torch.full((2, 3, 4, 4), 0.7, requires_grad=True)
    (slope,) = torch.autograd.grad(BatchNoise(0.5).eval()(flat).sum(), flat)
    assert torch.equal(slope, torch.ones_like(flat))


@pytest.mark.parametrize("how", RANDOM)
def test_noise_comes_from_the_bound_streams(how: str) -> None:
    model, x = build(broken(how), convolutional).eval(), pictures()
    assert is_stochastic(model)
    world = torch.get_rng_state()
    first, again, other = (_with(model, x, streams(4, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    defense, generator = broken(how), torch.Generator().manual_seed(3)
    defense.begin(Step(model, None, Threat(), generator, lambda *_: torch.empty(0)))
    before = generator.get_state()
    model(x)
    assert not torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), world)
    copies = [defense.deploy(model), copy.deepcopy(model)]
    layers = [m for c in copies for m in c.modules() if isinstance(m, RandomModule)]
    assert [m.noise_source for m in layers] == [None, None]


def _with(model: nn.Module, x: Tensor, source: SampleRandom) -> Tensor:
    with noise_from(model, source), torch.no_grad():
        out: Tensor = model(x)
    return out


@pytest.mark.parametrize("how", sorted(set(get_args(How)) - {*RANDOM}))
def test_other_kinds_are_not_random(how: str) -> None:
    assert not is_stochastic(build(broken(how)))


# JPEG -------------------------------------------------------------------------------------------------------


def photograph(channels: int, height: int, width: int) -> Tensor:
    """Something smooth with edges and grain, in whole grey levels: (C, H, W), uint8."""
    g = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [90 * torch.sin(rows / (5 + c) + c) * torch.cos(columns / (7 - c)) for c in range(channels)]
    image = torch.stack(waves) + 120 + 60 * (rows + columns > width)
    return (image + 12 * torch.randn(image.shape, generator=g)).clamp(0, 255).round().byte()


def by_pillow(image: Tensor, quality: int) -> tuple[Tensor, dict[int, list[int]]]:
    """Decoded pixels (C, H, W) and the tables in the file."""
    file = io.BytesIO()
    pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "jpeg", quality=quality, subsampling=0)
    with Image.open(io.BytesIO(file.getvalue())) as opened:
        height, width = image.shape[1:]
        decoded = torch.frombuffer(bytearray(opened.tobytes()), dtype=torch.uint8)
        tables = dict(opened.quantization)  # type: ignore[attr-defined]
    return decoded.view(height, width, -1).permute(2, 0, 1), tables


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_that_of_pillow(channels: int, quality: int) -> None:
    image = photograph(channels, 43, 61)  # not whole blocks
    wanted, tables = by_pillow(image, quality)
    layer = Jpeg(quality).eval()
    for number, table in tables.items():
        assert layer.tables[number].flatten().tolist() == list(table)
    x = image[None] / 255
    got = 255 * layer(x)[0]
    off, lost = (got - wanted).abs(), (255 * x[0] - wanted).abs()
    # Pillow's grey levels are whole ones, and so are its Y, Cb and Cr. A coefficient halfway between two steps may go
    # either way, which a few blocks show.
    assert off.mean() < (0.6 if channels == 1 else 2)
    if quality <= 75:
        assert lost.mean() > 5 * off.mean()
        assert off.flatten().quantile(0.85) < (0.55 if channels == 1 else 4)


def test_jpeg_of_a_plain_image_is_itself_and_stays_in_the_box() -> None:
    x = torch.tensor([0.0, 128 / 255, 1.0]).view(3, 1, 1, 1).expand(3, 3, 9, 10)
    torch.testing.assert_close(Jpeg(100).eval()(x), x, atol=1e-3, rtol=0)
    noisy = Jpeg(1).eval()(pictures(3, 5))
    assert noisy.shape == (3, 3, 5, 5)
    assert noisy.min() >= 0
    assert noisy.max() <= 1


def test_jpeg_is_not_run_in_bfloat16() -> None:
    x, layer = pictures(), Jpeg(75).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), layer(x.clone()))
        inside = layer(x)
    assert torch.equal(inside, layer(x))


# Nothing else changes ---------------------------------------------------------------------------------------


def test_off_is_the_plain_network_bit_for_bit() -> None:
    def make() -> nn.Module:
        return mlp()

    assert Broken().wrap(make) is make
    model = mlp()
    assert Broken().deploy(model) is model


@pytest.mark.parametrize("how", EVAL_ONLY)
def test_weights_are_those_of_natural_training(how: str) -> None:
    natural, model = train(build(Broken()), 1), train(build(broken(how)), 1)
    assert {f"network.{k}" for k in natural.state_dict()} == set(model.state_dict())
    for key, value in natural.state_dict().items():
        assert torch.equal(model.state_dict()[f"network.{key}"], value)


def test_winners_are_trained_with() -> None:
    natural, model = train(build(Broken()), 1), train(build(broken("k_wta")), 1)
    assert list(natural.state_dict()) == list(model.state_dict())
    assert not torch.equal(natural[1].weight, model[1].weight)


@pytest.mark.parametrize("how", get_args(How))
def test_deployed_weights_fit_a_network_made_anew(how: str) -> None:
    defense, x = broken(how), pictures()
    model = build(defense, convolutional).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    rebuilt = build(defense, convolutional).eval()
    rebuilt.load_state_dict(defense.deploy(model).state_dict())
    for other in (rebuilt, copy.deepcopy(model)):
        assert torch.equal(_with(other, x, streams(4)), _with(model, x, streams(4)))


@pytest.mark.parametrize("how", get_args(How))
def test_a_stand_in_is_broken_in_the_same_way(how: str) -> None:
    exact, x, y = build(broken(how), convolutional), pictures(), torch.arange(4)
    for _ in range(3):
        exact.train()(pictures(16))  # statistics worth folding
    assert len(pairs_of(exact)) == len(pairs_of(exact.eval())) == 1
    stem, norm = next(iter(pairs_of(exact).items()))
    assert stems_of(exact) == [stem]
    twin = FastNetwork(exact, precision="bf16")
    assert isinstance(twin.twin.get_submodule(norm), nn.Identity)
    ours, theirs = _with(exact, x, streams(4)), _with(twin, x, streams(4))
    scale = ours.abs().max()
    assert theirs.dtype == torch.float32
    assert (ours - theirs).abs().max() < (0.1 if how == "k_wta" else 0.03) * scale
    if how in ZERO_GRADIENT:
        assert gradient(twin, x, y).count_nonzero() == 0
    elif how == "constant_gradient":
        assert torch.equal(gradient(twin, x, y), torch.ones_like(x))
    else:
        assert gradient(twin, x, y).count_nonzero() > 0
    wide = FastNetwork(exact.double(), precision="fp32")
    ours, theirs = (_with(m, x.double(), streams(4)) for m in (exact, wide))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "part",
    [
        ScaledLogits(3.0),
        SigmoidOutputs(3.0),
        Staircase(4.0),
        ConstantGradient(),
        BatchNoise(0.5),
        InputNoise(0.5),
        Jpeg(10.0),
    ],
    ids=lambda part: type(part).__name__,
)
def test_in_training_mode_a_part_hands_its_input_on(part: nn.Module) -> None:
    x: Any = pictures()
    assert part.train()(x) is x
    if not isinstance(part, ConstantGradient):
        assert not torch.equal(part.eval()(x), x)


@pytest.mark.parametrize("how", sorted(set(get_args(How)) - {"none", "constant_gradient"}))
def test_strength_is_handed_on(how: str) -> None:
    x = pictures()
    strength = 0.6 if how == "k_wta" else 3.0
    default, other = (build(broken(how, s), convolutional).eval() for s in (None, strength))
    assert not torch.allclose(_with(default, x, streams(4)), _with(other, x, streams(4)), atol=1e-6)
