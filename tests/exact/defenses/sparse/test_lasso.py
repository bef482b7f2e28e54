"""Lasso: penalties by hand, subgradients at zero, and what the judged network is rounded to."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses import CLIP, PGDAT, EnResNet, GroupLasso, HoldZeros, Lasso
from defenses.base import chosen_weights
from robustbench_sparse.models.lenet import LeNet
from robustbench_sparse.models.mlp import MLP
from robustbench_sparse.models.preact_resnet import PreActResNet
from robustbench_sparse.sparsity.counting import count_layers, count_sparsity
from tests.helpers.pruning_steps import IMAGES, OPTIMIZERS, begin, lived, train
from tests.helpers.zeros import zero_shares


def pair() -> nn.Module:
    """A convolution with filters (3, 4; 0, 0) and a linear layer with rows (1, -2), (0, 2)."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]).view(2, 2, 1, 1))
        model[2].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 2.0]]))
    return model


# The penalty ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 7 + 5),
        ({"conv": None}, 5),
        ({"linear": None}, 7),
        ({"linear": None, "conv": {"name": "group_lasso", "group": "filter"}}, 5),
        ({"linear": None, "conv": {"name": "group_lasso", "group": "channel"}}, 3 + 4),
        ({"linear": None, "conv": {"name": "group_lasso", "group": "kernel"}}, 7),
        (
            {"linear": {"name": "group_lasso", "group": "row", "weighted": True}, "conv": None},
            2**0.5 * (5**0.5 + 2),
        ),
        (
            {"linear": None, "conv": {"name": "sparse_group_lasso", "group": "row", "mix": 0.25}},
            0.25 * 7 + 0.75 * 5,
        ),
        ({"linear": {"name": "transformed_l1", "a": 1.0}, "conv": None}, 2 * (1 / 2 + 2 / 3 + 2 / 3)),
    ],
)
def test_penalty_by_hand(settings: dict[str, Any], expected: float) -> None:
    model = pair()
    lasso = Lasso(lam=0.5, **settings)
    term = lasso.penalty(begin(lasso, model))
    assert term is not None
    assert term.item() == pytest.approx(0.5 * expected, rel=1e-6)
    term.backward()  # type: ignore[no-untyped-call]
    for p in model.parameters():
        assert p.grad is None or p.grad.isfinite().all()  # at zero weights and groups, too
        assert p.ndim > 1 or p.grad is None  # biases are not regularised


def test_subgradient_is_lambda_times_the_sign() -> None:
    model = pair()
    lasso = Lasso(lam=0.5)
    term = lasso.penalty(begin(lasso, model))
    assert term is not None
    term.backward()  # type: ignore[no-untyped-call]
    for w in chosen_weights(model, "all").values():
        assert torch.equal(w.grad, 0.5 * w.detach().sign())


def test_no_lambda_no_penalty() -> None:
    lasso = Lasso(threshold=0.1)
    assert lasso.penalty(begin(lasso, pair())) is None


def test_a_regulariser_as_an_object_is_taken_as_it_is() -> None:
    lasso = Lasso(lam=1.0, linear=None, conv=GroupLasso(group="filter"))  # type: ignore[arg-type]
    term = lasso.penalty(begin(lasso, pair()))
    assert term is not None
    assert term.item() == 5


def test_weights_shrink_to_a_ball_around_zero_on_a_flat_loss() -> None:
    """Subgradient steps of length lr lam end within lr lam of 0, and hardly ever at 0: hence the threshold."""
    model = pair()
    lasso = Lasso(lam=0.5, threshold=0.05 * 0.5)
    s = begin(lasso, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(200):
        term = lasso.penalty(s)
        assert term is not None
        optimizer.zero_grad()
        term.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(w.abs().max() <= 0.025 + 1e-6 for w in chosen_weights(model, "all").values())


def test_more_lambda_leaves_less_weight() -> None:
    norms = []
    for lam in (0.0, 1e-3, 1e-2):
        model = lived(MLP(hidden=(12,)))
        lasso = Lasso(lam=lam)
        train(lasso, begin(lasso, model), OPTIMIZERS["adam"](model.parameters()), 60)
        norms.append(count_sparsity(model, 3, 16)["layers"][0]["l1_norm"])
    assert norms[0] > 1.05 * norms[1] > 1.2 * norms[2]


# What is judged ---------------------------------------------------------------------------------------------


def test_threshold_rounds_single_weights_and_keeps_the_edge() -> None:
    model = pair()
    lasso = Lasso(threshold=2.0)
    begin(lasso, model)
    deployed = lasso.deploy(model)
    assert deployed.get_parameter("2.weight").tolist() == [[0, 0], [0, 0]]
    assert deployed.get_parameter("0.weight").flatten().tolist() == [3, 4, 0, 0]
    assert model.get_parameter("2.weight").tolist() == [[1, -2], [0, 2]]
    assert torch.equal(deployed.get_parameter("2.bias"), model.get_parameter("2.bias"))


@pytest.mark.parametrize("weighted", [False, True])
def test_threshold_rounds_groups_by_their_mean_square(weighted: bool) -> None:
    model = pair()
    rows = {"name": "group_lasso", "group": "row", "weighted": weighted}
    for threshold, left in (
        (math.sqrt(5 / 2) - 1e-3, [[1, -2], [0, 0]]),
        (math.sqrt(5 / 2) + 1e-3, [[0, 0], [0, 0]]),
    ):
        lasso = Lasso(threshold=threshold, linear=rows, conv=None)
        begin(lasso, model)
        assert lasso.deploy(model).get_parameter("2.weight").tolist() == left
        assert lasso.deploy(model).get_parameter("0.weight").flatten().tolist() == [3, 4, 0, 0]


def test_a_sparse_group_lasso_rounds_single_weights() -> None:
    lasso = Lasso(threshold=1.0, linear={"name": "sparse_group_lasso", "group": "row"}, conv=None)
    begin(lasso, pair())
    assert lasso.deploy(pair()).get_parameter("2.weight").tolist() == [[0, -2], [0, 2]]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("weight", {}),
        ("weight", {"linear": None}),
        ("weight", {"linear": "transformed_l1", "conv": {"name": "sparse_group_lasso", "group": "kernel"}}),
        ("row", {key: {"name": "group_lasso", "group": "row"} for key in ("linear", "conv")}),
        ("row", {"linear": {"name": "group_lasso", "group": "row"}, "conv": None}),
        ("channel", {"linear": None, "conv": "group_lasso"}),
        ("kernel", {"linear": None, "conv": {"name": "group_lasso", "group": "kernel"}}),
    ],
)
@pytest.mark.parametrize("percent", [10.0, 45.0, 90.0])
def test_matched_sparsity_is_met_exactly(kind: str, settings: dict[str, Any], percent: float) -> None:
    model = lived(LeNet())
    lasso = Lasso(lam=0.1, sparsity=percent, **settings)
    begin(lasso, model)
    deployed = lasso.deploy(model)
    asked = lasso.asked(deployed)
    assert asked is not None
    assert (asked.kind, asked.binding) == (kind, True)
    counts = [layer for layer in count_layers(deployed) if f"{layer['name']}.weight" in asked.names]
    zero, whole = (sum(layer[k] for layer in counts) for k in (f"zero_{kind}s", f"{kind}s"))
    assert zero == round(percent / 100 * whole)
    assert asked.percent == pytest.approx(100 * zero / whole)
    others = [layer for layer in count_layers(deployed) if f"{layer['name']}.weight" not in asked.names]
    assert all(layer["zero_weights"] == 0 for layer in others)
    for name, w in deployed.named_parameters():
        was = model.get_parameter(name)
        assert torch.equal(w, was * (w != 0))


def test_matched_sparsity_takes_the_smallest_and_ties_exactly() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 10, bias=False))
    with torch.no_grad():
        model[1].weight.fill_(0.5)
        model[1].weight[0, :3] = 0.1
    lasso = Lasso(sparsity=33.0)
    begin(lasso, model)
    w = lasso.deploy(model).get_parameter("1.weight")
    assert int((w == 0).sum()) == 33
    assert (w[0, :3] == 0).all()


def test_channels_are_compared_by_mean_square_across_layers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1))
    with torch.no_grad():
        model[0].weight.fill_(2.0)  # one channel of norm 4, mean square 4
        model[1].weight.fill_(3.0)  # four channels of norm 3
    lasso = Lasso(sparsity=20.0, linear=None, conv="group_lasso")
    begin(lasso, model)
    deployed = lasso.deploy(model)
    assert deployed.get_parameter("0.weight").count_nonzero() == 0
    assert deployed.get_parameter("1.weight").count_nonzero() == 4


def near_the_minimiser(groups: int, lr: float, lam: float, steps: int) -> tuple[nn.Module, Tensor]:
    """A convolution after subgradient steps on ||w - a||^2 / 2 + lam R(w), R the weighted norm of kernels; and a."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(groups, 1, 3, 3, generator=generator, dtype=torch.double)
    a *= torch.linspace(0.05, 2, groups, dtype=torch.double).view(-1, 1, 1, 1)
    model = nn.Sequential(nn.Conv2d(1, groups, 3, bias=False)).double()
    lasso = Lasso(lam=lam, linear=None, conv={"name": "group_lasso", "group": "kernel", "weighted": True})
    s = begin(lasso, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        term = lasso.penalty(s)
        assert term is not None
        loss = (model[0].weight - a).square().sum() / 2 + term
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, a


def test_threshold_in_closed_form() -> None:
    """The minimiser is a (1 - lam sqrt(n) / ||a||)+ per kernel; what it zeroes ends within 2 lr lam sqrt(n) of 0.

    Every threshold between 2 lr lam and the survivors' root mean square finds these zeros and no others: how many there
    are, lambda says. A share beyond them is met by asking for it, which takes the smallest of the survivors.
    """
    groups, lr, lam = 40, 0.01, 0.5
    model, a = near_the_minimiser(groups, lr, lam, 1500)
    mean = a.flatten(1).norm(dim=1) / 3  # n = 9
    zero = mean <= lam
    w = model.get_parameter("0.weight").detach()
    exact = a * (1 - lam / mean.view(-1, 1, 1, 1)).clamp_min(0)
    assert (w - exact).flatten(1).norm(dim=1).max() <= 2 * lr * lam * 3
    assert (w - exact)[~zero].abs().max() < 1e-3
    share = 100 * zero.double().mean().item()
    assert 20 < share < 80
    kernels = {"linear": None, "conv": {"name": "group_lasso", "group": "kernel", "weighted": True}}
    smallest = (mean - lam)[~zero].min().item()
    for lasso in (
        Lasso(threshold=2 * lr * lam, **kernels),
        Lasso(threshold=0.9 * smallest, **kernels),
        Lasso(sparsity=share, **kernels),
    ):
        begin(lasso, model)
        deployed = lasso.deploy(model).get_parameter("0.weight")
        assert torch.equal((deployed == 0).flatten(1).all(1), zero)
        assert torch.equal(deployed[~zero], w[~zero])
    more = Lasso(sparsity=90.0, **kernels)
    begin(more, model)
    kept = (more.deploy(model).get_parameter("0.weight") != 0).flatten(1).any(1)
    assert kept.tolist() == (mean >= mean.sort().values[36]).tolist()


def test_two_of_them_meet_a_share_of_weights_and_one_of_kernels() -> None:
    """As table 2 is shown: weights of linear layers and kernels of convolutions, each at its own share."""
    kernel = {"name": "group_lasso", "group": "kernel", "weighted": True}
    model = lived(LeNet())
    both = Lasso(lam=0.1, conv=kernel)
    apart = [
        Lasso(lam=0.1, conv=None, sparsity=96.4),
        Lasso(lam=0.1, linear=None, conv=kernel, sparsity=95.7),
    ]
    whole = both.penalty(begin(both, model))
    terms = [lasso.penalty(begin(lasso, model)) for lasso in apart]
    assert whole is not None
    assert sum(t.item() for t in terms if t is not None) == pytest.approx(whole.item(), rel=1e-6)
    deployed = apart[1].deploy(apart[0].deploy(model))
    for lasso, kind in zip(apart, ("weight", "kernel"), strict=True):
        asked = lasso.asked(deployed)
        assert asked is not None
        counts = [layer for layer in count_layers(deployed) if f"{layer['name']}.weight" in asked.names]
        zero, n = (sum(layer[k] for layer in counts) for k in (f"zero_{kind}s", f"{kind}s"))
        assert zero == round(lasso.sparsity / 100 * n)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"conv": "l0"}, "conv"),
        ({"linear": "group_l0"}, "linear"),
        ({"conv": "zero"}, "conv"),
        ({"linear": "l1_nonnegative"}, "linear"),
        ({"linear": {"name": "sparse_group_lasso", "group": "kernel"}}, "linear"),
        ({"conv": {"name": "group_lasso", "groups": "row"}}, "conv"),
        ({"sparsity": 10.0, "conv": {"name": "group_lasso", "group": "layer"}, "linear": None}, "sparsity"),
        ({"sparsity": 10.0, "linear": "group_lasso", "conv": "group_lasso"}, "sparsity"),
        ({"sparsity": 10.0, "linear": None, "conv": None}, "sparsity"),
    ],
)
def test_what_cannot_be_followed_or_counted_is_refused(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got "):
        Lasso(**settings)


def test_layers_that_are_not_there_are_refused() -> None:
    model = lived(MLP())
    with pytest.raises(ValueError, match=r"^lasso: expected a network with"):
        Lasso(lam=0.1, linear=None).check(model)
    Lasso(linear=None).check(model)


def test_off_is_off() -> None:
    model, lasso = pair(), Lasso()
    s = begin(lasso, model)
    assert lasso.deploy(model) is model
    assert lasso.asked(model) is None
    assert lasso.penalty(s) is None


# Beside others ----------------------------------------------------------------------------------------------


def test_the_next_stage_holds_what_was_rounded() -> None:
    model = lived(LeNet())
    lasso = Lasso(lam=1e-3, threshold=0.05)
    train(lasso, begin(lasso, model), OPTIMIZERS["adam"](model.parameters()), 5)
    judged = lasso.deploy(model)
    hold = HoldZeros(threshold=0.05)
    s = begin(hold, model)
    assert all(torch.equal(judged.get_parameter(n), w) for n, w in chosen_weights(model, "all").items())
    shares = zero_shares(model)
    train(hold, s, OPTIMIZERS["momentum"](model.parameters()), 5)
    assert zero_shares(hold.deploy(model)) == shares
    assert shares["weight_sparsity"] > 10  # type: ignore[operator]


@pytest.mark.parametrize("lasso", [Lasso(lam=1e-3, sparsity=70.0), Lasso(lam=1e-2, conv="nuclear")])
def test_composes_with_adversarial_training_penalty_and_ensemble(lasso: Lasso) -> None:
    lasso, ensemble = dataclasses.replace(lasso), EnResNet()
    adversarial, clip = PGDAT(eps=0.1, steps=2), CLIP(lam=0.1, pairs=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ensemble.wrap(lambda: PreActResNet(depth=8, widths=(4, 4, 6)).build(3, 16, 10))()
    steps = [begin(d, model) for d in (ensemble, adversarial, clip, lasso)]
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    losses: list[Tensor] = []
    for _ in range(3):
        for s in steps:
            s.x, s.y = IMAGES[:8], torch.arange(8)
        x = adversarial.perturb(steps[1])
        loss = nn.functional.cross_entropy(model(x), torch.arange(8))
        for d, s in ((clip, steps[2]), (lasso, steps[3])):
            term = d.penalty(s)
            loss = loss if term is None else loss + term
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert all(loss.isfinite() for loss in losses)
    deployed = lasso.deploy(clip.deploy(ensemble.deploy(model)))
    expected = lasso.sparsity
    assert zero_shares(deployed)["weight_sparsity"] == pytest.approx(expected, abs=0.05)
