"""AutoAttack: image by image, each member of the ensemble sees what the earlier ones left, and the library's agrees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks import APGD, FAB, AutoAttack, SampleRandom, Square, Threat
from tests.helpers.attack_models import linear_net, smallest_norm

torchattacks = pytest.importorskip("torchattacks")
N, CLASSES = 24, 5
X = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2


def streams(n: int = N) -> SampleRandom:
    return SampleRandom.for_images(0, "autoattack", range(n))


def network(classes: int = CLASSES) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ELU(), nn.Flatten(), nn.Linear(216, classes)).eval()


def labels(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X).argmax(1)


@pytest.mark.parametrize(
    ("classes", "loss"), [(2, "margin"), (3, "dlr"), (4, "dlr_targeted"), (10, "dlr_targeted")]
)
def test_the_ensemble_fits_the_number_of_classes(classes: int, loss: str) -> None:
    first, second, fab, square = AutoAttack().attacks(classes)
    assert isinstance(first, APGD)
    assert first.loss == "ce"
    assert isinstance(second, APGD)
    assert second.loss == loss
    assert isinstance(fab, FAB)
    assert fab.within
    assert isinstance(square, Square)
    assert square.queries == 5000
    model = network(classes)
    y = labels(model)
    x_adv = AutoAttack(steps=10, queries=20)(model, X, y, Threat(eps=0.3), streams())
    assert (model(x_adv).argmax(1) != y).all()


def test_without_queries_square_is_left_out() -> None:
    assert [type(a).__name__ for a in AutoAttack(queries=0).attacks(10)] == ["APGD", "APGD", "FAB"]


def test_passes_and_cost_count_the_whole_ensemble() -> None:
    attack = AutoAttack(steps=100, targets=9, queries=5000)
    assert attack.passes == 100 + 900 + 199 * 9
    assert attack.cost == 2 * (1000 + 199 * 9) + 5000


def test_it_is_as_strong_as_each_of_its_members() -> None:
    model = network()
    y = labels(model)
    whole = AutoAttack(steps=20, queries=200)
    for eps in (0.03, 0.05, 0.08):
        threat = Threat(eps=eps)
        stands = model(whole(model, X, y, threat, streams())).argmax(1) == y
        for member in whole.attacks(CLASSES):
            alone = threat.project(member(model, X, y, threat, streams()), X)
            fooled = model(alone).argmax(1) != y
            assert not (stands & fooled).any(), (eps, member)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_finds_the_boundary_of_a_linear_network(norm: str) -> None:
    model = linear_net(CLASSES, 64, scale=0.5)
    x = X.double()
    y = model(x).argmax(1)
    distance = smallest_norm(model, x, y, norm)
    for factor, expected in ((1.02, 1.0), (0.98, 0.0)):
        for i in range(0, N, 6):
            threat = Threat(norm=norm, eps=factor * distance[i].item())  # type: ignore[arg-type]
            x_adv = AutoAttack(steps=40, queries=50)(model, x[i : i + 1], y[i : i + 1], threat, streams(1))
            assert (model(x_adv).argmax(1) != y[i : i + 1]).double().item() == expected


def test_the_library_finds_no_more() -> None:
    model = network()
    y = labels(model)
    for eps in (0.04, 0.06):
        ours = AutoAttack()(model, X, y, Threat(eps=eps), streams())
        with torch.random.fork_rng():
            theirs = torchattacks.AutoAttack(model, eps=eps, n_classes=CLASSES, seed=0)(X, y)
        stands, stood = (model(ours).argmax(1) == y), (model(theirs).argmax(1) == y)
        assert not (stands & ~stood).any()
        assert 0 < stood.sum() < N
