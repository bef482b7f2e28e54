"""CLIP against networks whose Lipschitz constant is known, and its update rules one by one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import Threat
from defenses import CLIP, EnResNet, Step
from defenses.robust.clip import STEP_RANGE, ascend, quotient
from robustbench_sparse.config.plugins import settings_of


def step(model: nn.Module, source: Tensor) -> Step:
    def images(split: str, count: int, generator: torch.Generator) -> Tensor:
        return source[torch.randint(len(source), (count,), generator=generator)]

    return Step(model, None, Threat(), torch.Generator().manual_seed(0), images)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def mlp(*sizes: int, seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [(nn.Linear(a, b), activation()) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*[m for pair in layers for m in pair][:-1])


def absolute_value() -> nn.Module:
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
    return model


def term(clip: CLIP, s: Step) -> Tensor:
    value = clip.penalty(s)
    assert value is not None
    return value


# The quotient and its ascent ---------------------------------------------------------------------------


def test_absolute_value_has_lipschitz_constant_one() -> None:
    # Roith example 1.7; the layer-wise bound says 2.
    first, second = 4 * draw(0, 500, 1) - 2, 4 * draw(1, 500, 1) - 2
    far = (first - second).abs().flatten() > 0.01  # rounding divided by the distance
    values = quotient(absolute_value(), first, second)[far]
    assert values.max().item() == pytest.approx(1, abs=1e-4)
    assert values.min() < 0.5  # pairs on both sides of the kink see less
    clip = CLIP(lam=1.0, pairs=8, step_size=0.1)
    s = step(absolute_value(), 4 * draw(2, 50, 1) - 2)
    clip.begin(s)
    for _ in range(50):
        last = term(clip, s).item()
    assert last == pytest.approx(1, abs=1e-4)


def test_ascent_finds_the_top_singular_value() -> None:
    matrix = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 5))
    with torch.no_grad():
        model[1].weight.copy_(matrix)
    sigma = torch.linalg.svdvals(matrix)[0].item()
    clip = CLIP(lam=1.0, pairs=4, init="partial_random")
    s = step(model, draw(0, 20, 2, 2, 2))
    clip.begin(s)
    start = term(clip, s).item()
    for _ in range(200):
        last = term(clip, s).item()
    assert start < 0.9 * sigma
    assert 0.99 * sigma < last < 1.001 * sigma


def test_a_step_never_lowers_a_quotient_and_adapts_its_size() -> None:
    model = mlp(6, 20, 20, 3)
    first, second, size = draw(0, 40, 6), draw(1, 40, 6), torch.full((40,), 3.0)
    seen = set()
    for _ in range(30):
        before = quotient(model, first, second).detach()
        old, old_size = (first, second), size
        first, second, size, values = ascend(model, first, second, size, 1.3)
        torch.testing.assert_close(values, quotient(model, first, second).detach())
        assert (values >= before).all()
        moved = (first != old[0]).any(1)
        assert torch.equal(moved, values > before)
        assert torch.equal(size, torch.where(moved, old_size * 1.3, old_size / 1.3))
        assert torch.equal(first[~moved], old[0][~moved])
        assert torch.equal(second[~moved], old[1][~moved])
        seen |= set(moved.tolist())
    assert seen == {True, False}


def test_step_is_the_gradient_of_half_the_square() -> None:
    model = mlp(6, 20, 3, activation=nn.Tanh).double()
    first, second = draw(0, 4, 6).double(), draw(1, 4, 6).double()
    tau = torch.tensor([1e-3, 2e-3, 3e-3, 4e-3], dtype=torch.double)
    new_first, new_second, _, _ = ascend(model, first, second, tau, 1.3)
    for i in range(4):
        a, b = (p[i].clone().requires_grad_(True) for p in (first, second))
        value = (model(a) - model(b)).norm() / (a - b).norm()
        grad_a, grad_b = torch.autograd.grad(value, (a, b))
        torch.testing.assert_close(new_first[i], first[i] + tau[i] * value.detach() * grad_a)
        torch.testing.assert_close(new_second[i], second[i] + tau[i] * value.detach() * grad_b)


def test_equal_and_close_points_stay_finite_and_are_not_overrated() -> None:
    model = mlp(6, 20, 3)
    x = draw(0, 3, 6)
    size = torch.ones(3)
    first, _, size, values = ascend(model, x, x.clone(), size, 1.3)
    assert torch.equal(values, torch.zeros(3))
    assert first.isfinite().all()
    assert size.isfinite().all()
    # 1e-6 apart the difference of these logits is rounding: taken for slope it would be far too much.
    x = draw(1, 200, 6)
    slope = torch.linalg.matrix_norm(torch.func.vmap(torch.func.jacrev(model))(x), ord=2).max()
    with torch.no_grad():
        model[2].bias.add_(100)
        rise = (model(x) - model(x + 1e-6)).norm(dim=1)
    assert (rise / (1e-6 * math.sqrt(6))).max() > 5 * slope
    assert (quotient(model, x, x + 1e-6) <= slope).all()


def test_box_keeps_the_pairs_in_the_image_range() -> None:
    model, source = mlp(12, 20, 3), draw(0, 30, 12)
    ranges = []
    for box in (False, True):
        clip = CLIP(lam=1.0, pairs=10, step_size=100.0, init_noise=0.5, box=box)
        s = step(model, source)
        clip.begin(s)
        for _ in range(20):
            term(clip, s)
        points = torch.cat((clip.memory["first"], clip.memory["second"]))
        ranges.append((points.min().item(), points.max().item()))
    assert ranges[0][0] < 0
    assert ranges[0][1] > 1
    assert 0 <= ranges[1][0] < ranges[1][1] <= 1


@pytest.mark.parametrize("init", ["perturbed", "partial_random", "noise"])
def test_pairs_start_as_documented(init: str) -> None:
    source = 0.5 + 0.2 * draw(0, 30, 4000)
    clip = CLIP(lam=1.0, pairs=10, init=init, init_noise=0.05)  # type: ignore[arg-type]
    s = step(nn.Linear(4000, 2), source)
    clip.begin(s)
    clip._renew(s)
    first, second = clip.memory["first"], clip.memory["second"]
    if init == "noise":
        both = torch.cat((first, second))
        assert 0 <= both.min() < 1e-4
        assert 0.05 - 1e-4 < both.max() <= 0.05
        assert not torch.equal(first, second)
        return
    assert all(any(torch.equal(x, y) for y in source) for x in first)
    noise = (second - first) / 0.05
    mean, std = (0.0, 1.0) if init == "perturbed" else (0.5, 1 / math.sqrt(12))
    n = noise.numel()  # 40 000: four standard errors
    assert noise.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(n))
    assert noise.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * n))


def test_pairs_are_renewed_and_carried_in_between() -> None:
    clip = CLIP(lam=1.0, pairs=3, renew_every=3, step_size=1e-9)
    s = step(mlp(6, 20, 3), draw(0, 30, 6))
    clip.begin(s)
    firsts = []
    for _ in range(7):
        term(clip, s)
        firsts.append(clip.memory["first"])
    close = [torch.allclose(a, b, atol=1e-5) for a, b in itertools.pairwise(firsts)]
    assert close == [True, True, False, True, True, False]


def test_step_sizes_stay_where_they_can_recover() -> None:
    # A constant network: no step is ever accepted.
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.zero_()
    clip = CLIP(lam=1.0, pairs=3, step_size=2.0, step_factor=10.0)
    s = step(model, draw(0, 30, 6))
    clip.begin(s)
    for _ in range(60):
        assert term(clip, s).item() == 0
    assert clip.memory["step"].tolist() == pytest.approx([2.0 / STEP_RANGE] * 3)


# As printed (Roith 1.2.1): plain ascent on the pairs, the maximum in the loss. With f(x) = W x and d = x - x',
# L = ||W d|| / ||d||, and L grad_x L = (W^T W d - L^2 d) / ||d||^2.

W = torch.randn(5, 8, generator=torch.Generator().manual_seed(3), dtype=torch.double)


def linear() -> nn.Linear:
    model = nn.Linear(8, 5).double()
    with torch.no_grad():
        model.weight.copy_(W)
    return model


def slope_and_step(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """L (P,) and L grad_x L (P, 8) in closed form; the other point's gradient is minus that."""
    d = first - second
    size = d.norm(dim=1, keepdim=True)
    slope = (d @ W.T).norm(dim=1, keepdim=True) / size
    return slope.flatten(), (d @ W.T @ W - slope**2 * d) / size**2


def printed(**settings: object) -> CLIP:
    fixed = {"pairs": 4, "ascent": "plain", "renew_every": None, "max_lipschitz": math.inf, **settings}
    return CLIP(**fixed)  # type: ignore[arg-type]


@pytest.mark.parametrize("tau", [1e-3, 0.1, 1e3])
def test_plain_ascent_takes_the_printed_step_whatever_its_size(tau: float) -> None:
    first, second = draw(0, 6, 8).double(), draw(1, 6, 8).double()
    size = torch.full((6,), tau, dtype=torch.double)
    before, move = slope_and_step(first, second)
    a, b, after, values = ascend(linear(), first, second, size, 1.3, plain=True)
    torch.testing.assert_close(a, first + tau * move)
    torch.testing.assert_close(b, second - tau * move)
    torch.testing.assert_close(values, slope_and_step(a, b)[0])
    assert torch.equal(after, size), "tau is fixed"
    if tau == 1e-3:
        assert (values > before).all()


def test_plain_ascent_keeps_a_step_that_lowers_the_quotient_and_the_accepted_one_does_not() -> None:
    """f(x) = (3 x_1, x_2), d = (cos t, sin t): a step of tau = 1 / 8 from t beyond 45 degrees turns d past the top."""
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    zero, size = torch.zeros(1, 2, dtype=torch.double), torch.ones(1, dtype=torch.double)
    d = torch.tensor([[3.0, 1.0]], dtype=torch.double) / math.sqrt(10)
    # L^2 = (81 + 1) / 10 = 8.2; L grad L = ((9 - 8.2) 3, (1 - 8.2) 1) / sqrt 10 = (2.4, -7.2) / sqrt 10, on both ends.
    a, b, _, values = ascend(model, d, zero, size, 1.3, plain=True)
    torch.testing.assert_close((a - b) * math.sqrt(10), torch.tensor([[7.8, -13.4]], dtype=torch.double))
    lower = math.sqrt((9 * 7.8**2 + 13.4**2) / (7.8**2 + 13.4**2))
    assert values.item() == pytest.approx(lower)
    assert lower < math.sqrt(8.2)
    a, b, tau, values = ascend(model, d, zero, size, 1.3)
    assert torch.equal(a - b, d)
    assert values.item() == pytest.approx(math.sqrt(8.2))
    assert tau.item() == pytest.approx(1 / 1.3)


def test_the_printed_objective_in_closed_form() -> None:
    """lambda max L at the moved pairs, and its gradient lambda W d d^T / (||W d|| ||d||) at the maximal one."""
    model, clip = linear(), printed(lam=0.3, step_size=0.05)
    s = step(model, draw(0, 20, 8).double())
    clip.begin(s)
    term(clip, s)
    first, second = clip.memory["first"], clip.memory["second"]
    for _ in range(3):
        move = 0.05 * slope_and_step(first, second)[1]
        first, second = first + move, second - move
        value = term(clip, s)
        torch.testing.assert_close(clip.memory["first"], first)
        torch.testing.assert_close(clip.memory["second"], second)
    slopes = slope_and_step(first, second)[0]
    torch.testing.assert_close(value, 0.3 * slopes.max())
    d = (first - second)[slopes.argmax()]
    (grad,) = torch.autograd.grad(value, model.weight)
    torch.testing.assert_close(grad, 0.3 * (W @ d).outer(d) / ((W @ d).norm() * d.norm()))


def test_plain_ascent_finds_the_lipschitz_constant_of_a_linear_network() -> None:
    clip = printed(lam=1.0, step_size=1e-3)
    s = step(linear(), draw(0, 20, 8).double())
    clip.begin(s)
    values = [term(clip, s).item() for _ in range(400)]
    sigma = torch.linalg.svdvals(W)[0].item()
    assert values[0] < 0.95 * sigma
    assert values[-1] == pytest.approx(sigma, rel=1e-3)
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values)), "with a step this small L only grows"


@pytest.mark.parametrize(("every", "draws"), [(None, 1), (4, 3)])
def test_the_printed_pairs_are_drawn_once(every: int | None, draws: int) -> None:
    drawn = []

    def images(split: str, count: int, generator: torch.Generator) -> Tensor:
        drawn.append(split)
        return draw(0, count, 8).double()

    clip = printed(lam=1.0, step_size=1e-3, renew_every=every)
    s = Step(linear(), None, Threat(), torch.Generator().manual_seed(0), images)
    clip.begin(s)
    for _ in range(12):
        term(clip, s)
    assert drawn == ["val"] * draws


def test_no_batch_is_left_out_as_printed() -> None:
    model = linear()
    with torch.no_grad():
        model.weight.mul_(1e5)
    for clip, skipped in ((printed(lam=1.0, step_size=1e-12), 0), (CLIP(lam=1.0, pairs=4), 1)):
        s = step(model, draw(0, 20, 8).double())
        clip.begin(s)
        assert (term(clip, s).item() > 1e4) == (skipped == 0)
        assert clip.end_epoch(s)["skipped"] == skipped


def test_records_of_earlier_runs_stay_as_they_are() -> None:
    assert "ascent" not in settings_of(CLIP(lam=1.0))
    assert settings_of(printed())["ascent"] == "plain"


# The penalty -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["max", "max_squared", "mean"])
def test_penalty_and_its_gradient(reduction: str) -> None:
    model = mlp(6, 20, 3, activation=nn.Tanh).double()
    clip = CLIP(lam=0.7, pairs=9, reduction=reduction)  # type: ignore[arg-type]
    s = step(model, draw(0, 30, 6).double())
    clip.begin(s)
    value = term(clip, s)
    each = quotient(model, clip.memory["first"], clip.memory["second"])
    expected = {"max": each.max(), "max_squared": each.max() ** 2, "mean": (each**2).mean()}[reduction]
    torch.testing.assert_close(value, 0.7 * expected)
    weights = [model[0].weight, model[2].weight]
    got, wanted = torch.autograd.grad(value, weights), torch.autograd.grad(0.7 * expected, weights)
    torch.testing.assert_close(got, wanted)
    assert clip.end_epoch(s)["lipschitz"] == pytest.approx(each.max().item())


def test_cheap_moves_pairs_by_the_gradients_of_the_one_backward_pass() -> None:
    model = mlp(6, 20, 3, activation=nn.Tanh).double()
    clip = CLIP(lam=0.01, pairs=5, reduction="mean", cheap=True, step_size=0.3)
    s = step(model, draw(0, 30, 6).double())
    clip.begin(s)
    value = term(clip, s)
    first, second = clip.memory["first"].clone(), clip.memory["second"].clone()
    old = [p.clone().requires_grad_(True) for p in (first, second)]
    each = quotient(model, *old)
    torch.testing.assert_close(value, 0.01 * each.square().mean())
    wanted = torch.autograd.grad((each.square() / 2).sum(), old)
    (value + model(draw(1, 4, 6).double()).square().sum()).backward()  # type: ignore[no-untyped-call]
    clip.before_step(s)
    torch.testing.assert_close(clip.memory["first"], first + 0.3 * wanted[0])
    torch.testing.assert_close(clip.memory["second"], second + 0.3 * wanted[1])
    assert "moving" not in clip.memory
    assert not clip.memory["first"].requires_grad


def test_batches_with_too_large_a_term_are_left_out_and_counted() -> None:
    model = mlp(6, 20, 3)
    with torch.no_grad():
        model[2].weight.mul_(1e6)
    for reduction in ("max", "max_squared", "mean"):
        clip = CLIP(lam=1.0, pairs=5, reduction=reduction)  # type: ignore[arg-type]
        s = step(model, draw(0, 30, 6))
        clip.begin(s)
        for _ in range(2):
            value = term(clip, s)
            assert value == 0
            grads = torch.autograd.grad(value, list(model.parameters()))
            assert all(g.count_nonzero() == 0 for g in grads)
        assert clip.end_epoch(s)["skipped"] == 2
    clip = CLIP(lam=1.0, pairs=5, reduction="mean", cheap=True)
    clip.begin(s)
    assert clip.penalty(s) is None
    assert clip.penalty(s) is None
    clip.before_step(s)
    assert clip.end_epoch(s)["skipped"] == 2


def test_a_pair_that_overflows_leaves_the_gradients_of_the_loss_alone() -> None:
    model = mlp(6, 20, 3)
    clip = CLIP(lam=1.0, pairs=5)
    s = step(model, draw(0, 30, 6))
    clip.begin(s)
    term(clip, s)
    clip.memory["first"][2] = torch.finfo(torch.float32).max
    loss = model(draw(1, 4, 6)).square().sum()
    alone = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    value = term(clip, s)
    assert value == 0
    assert clip.memory["lipschitz"].isnan()
    both = torch.autograd.grad(loss + value, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
    assert clip.end_epoch(s)["skipped"] == 1
    with torch.no_grad():
        model[2].weight.fill_(math.nan)
    clip.begin(s)
    assert term(clip, s) == 0


class Block(nn.Module):
    is_residual_block = True

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


def test_network_is_seen_as_deployed_without_noise_and_mixed_precision() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EnResNet().wrap(lambda: nn.Sequential(Block(), nn.Flatten(), nn.Linear(48, 3)))()
        plain = nn.ModuleList([nn.Sequential(m[0].block, m[1], m[2]) for m in model.members])
    s = step(model.train(), draw(0, 30, 3, 4, 4))
    EnResNet().begin(s)
    clip = CLIP(lam=1.0, pairs=5, step_size=1e-9)
    clip.begin(s)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = term(clip, s)
    plain.eval()

    def quiet(x: Tensor) -> Tensor:
        return torch.stack([m(x) for m in plain]).mean(0)

    first, second = clip.memory["first"], clip.memory["second"]
    torch.testing.assert_close(value, quotient(quiet, first, second).max())  # type: ignore[arg-type]


# What the theory says ----------------------------------------------------------------------------------


def regression(lam: float, reduction: str = "max") -> tuple[float, float, Tensor, Tensor]:
    """Fit 30 noisy samples of a smooth function; mean squared error, Lipschitz constant, outputs, targets."""
    x = torch.linspace(0, 1, 30)[:, None]
    noise = torch.randn(30, 1, generator=torch.Generator().manual_seed(1))
    y = torch.sin(6 * x) + 0.3 * noise
    model = mlp(1, 60, 60, 1, activation=nn.Tanh)
    clip = CLIP(lam=lam, pairs=15, init_noise=0.05, reduction=reduction)  # type: ignore[arg-type]
    s = step(model, x)
    clip.begin(s)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(600):
        loss = F.mse_loss(model(x), y)
        penalty = clip.penalty(s)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
    with torch.no_grad():
        grid = model(torch.linspace(0, 1, 2001)[:, None])
        return loss.item(), (grid.diff(dim=0).abs().max() * 2000).item(), model(x), y


def test_larger_lambda_means_smaller_lipschitz_constant_and_larger_loss() -> None:
    losses, constants = zip(*[regression(lam)[:2] for lam in (0.0, 0.01, 0.1)], strict=True)
    assert constants[0] > 1.2 * constants[1] > 1.2**2 * constants[2]
    assert losses[0] < losses[1] < losses[2]


def test_very_large_lambda_gives_the_constant_network_at_the_barycentre() -> None:
    _, constant, out, y = regression(10.0)
    assert constant < 0.05
    assert out.mean().item() == pytest.approx(y.mean().item(), abs=0.05)
