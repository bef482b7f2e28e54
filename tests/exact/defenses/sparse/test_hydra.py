"""HYDRA and S2AP: first scores, masks, straight-through gradients, one step by hand, the three stages."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses import AWP, EMA, PGDAT, S2AP, TRADES, EnResNet, Hydra, LinBreg
from defenses.base import chosen_weights
from defenses.sparse.hydra import initial_scores
from robustbench_sparse.config.optimizers import AdamSpec, SGDSpec
from robustbench_sparse.models.mlp import MLP
from tests.helpers.defense_loop import Loop, equal, fresh, made, same_run, tiny
from tests.helpers.pruning_steps import IMAGES, LABELS, begin, end_epoch, lived, step_of, train
from tests.helpers.zeros import zero_shares

SMALL = MLP(hidden=(12, 7), batch_norm=True)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: w.detach().clone() for k, w in chosen_weights(model, "all").items()}


def top(scores: np.ndarray[Any, Any], sparsity: float) -> np.ndarray[Any, Any]:
    """1 at the largest |s|, by sorting."""
    flat, gone = np.abs(scores).ravel(), round(sparsity / 100 * scores.size)
    mask = np.ones(flat.size)
    mask[np.argsort(flat, kind="stable")[:gone]] = 0
    shaped: np.ndarray[Any, Any] = mask.reshape(scores.shape)
    return shaped


# Scores and masks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 12), (4, 3, 5, 5)])
def test_scores_start_from_the_weights(shape: tuple[int, ...]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    fan_in = math.prod(shape[1:])
    expected = math.sqrt(6 / fan_in) * w.numpy() / np.abs(w.numpy()).max()
    np.testing.assert_allclose(initial_scores(w).numpy(), expected, rtol=1e-6)
    assert initial_scores(w).abs().max().item() == pytest.approx(math.sqrt(6 / fan_in))
    assert not initial_scores(torch.zeros(3, 2)).any()


@pytest.mark.parametrize("sparsity", [10.0, 50.0, 93.0])
def test_masks_are_the_largest_scores(sparsity: float) -> None:
    scores = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (30, 50)]
    masks = Hydra(sparsity=sparsity).masks(scores)
    for mask, a in zip(masks, scores, strict=True):
        np.testing.assert_array_equal(mask.numpy(), top(a.numpy(), sparsity))
    together = torch.cat(Hydra(sparsity=sparsity, scope="global").masks(scores))
    np.testing.assert_array_equal(together.numpy(), top(torch.cat(scores).numpy(), sparsity))


def test_the_gradient_of_scores_is_straight_through() -> None:
    """One linear layer: dL/ds = (dL/d(w m)) w sign(s) against autograd through m = |s|, and against differences."""
    model = nn.Linear(4, 2, bias=False).double()
    w = torch.tensor([[0.5, -2.0, 0.1, 1.0], [-0.3, 0.7, 3.0, -0.2]], dtype=torch.float64)
    model.weight.data.copy_(w)
    hydra = Hydra(sparsity=50.0)
    begin(hydra, model)
    kept = torch.tensor(
        [[0, 1, 0, 1], [0, 1, 1, 0]], dtype=torch.float64
    )  # of the eight the four largest |w|
    assert torch.equal(model.weight, w * kept)
    x, y = torch.eye(4, dtype=torch.float64)[:3], torch.tensor([0, 1, 1])
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), model.weight)
    scores = initial_scores(w).requires_grad_(True)
    (found,) = hydra.score_gradients([gradient], [scores.detach()])
    surrogate = scores.abs() + (kept - scores.abs()).detach()  # worth m, differentiated as |s|
    (expected,) = torch.autograd.grad(F.cross_entropy(x @ (w * surrogate).T, y), scores)
    torch.testing.assert_close(found, expected)
    # dL/dm_i by central differences, times sign(s).
    for i in range(8):
        e = torch.zeros(8, dtype=torch.float64)
        e[i] = 1e-6
        ups = [F.cross_entropy(x @ (w * (kept + t * e.view(2, 4))).T, y).item() for t in (1, -1)]
        slope = (ups[0] - ups[1]) / 2e-6 * math.copysign(1, w.flatten()[i].item())
        assert found.flatten()[i].item() == pytest.approx(slope, abs=1e-8)


# The search --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_two_steps_of_momentum_by_hand(scope: Any) -> None:
    """The optimizer steps on the scores as it would on any parameter; the weights under them never move."""
    model = lived(SMALL).double().train()
    start = weights(model)
    hydra = Hydra(sparsity=70.0, scope=scope)
    s = begin(hydra, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    scores = {k: initial_scores(w) for k, w in start.items()}
    buffers: dict[str, Tensor] = {}
    frozen = {
        k: p.detach().clone() for k, p in model.named_parameters() if k.endswith("bias") and p.ndim == 1
    }
    images = IMAGES.double()
    for _ in range(2):
        masks = dict(zip(scores, hydra.masks(list(scores.values())), strict=True))
        own = dict(model.named_parameters())
        for k, w in start.items():
            assert torch.equal(own[k], w * masks[k])
        loss = F.cross_entropy(model(images), LABELS)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for k in scores:
            gradient = own[k].grad
            assert gradient is not None
            step = gradient * start[k] * scores[k].sign() + 1e-2 * scores[k]
            buffers[k] = step if k not in buffers else 0.9 * buffers[k] + step
            scores[k] = scores[k] - 0.05 * buffers[k]
        s.optimizer = optimizer
        hydra.before_step(s)
        optimizer.step()
        hydra.after_step(s)
    for k, a in scores.items():
        torch.testing.assert_close(hydra.memory["scores"][k], a)
        assert torch.equal(hydra.memory["weights"][k], start[k])
    norms = {f"{n}.bias" for n, m in model.named_modules() if isinstance(m, nn.BatchNorm1d)}
    for k, before in frozen.items():
        assert torch.equal(own[k], before) != (k in norms), k


def test_norms_can_be_frozen_and_their_statistics_go_on() -> None:
    model = lived(SMALL)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    hydra = Hydra(sparsity=50.0, freeze_norms=True)
    s = begin(hydra, model)
    train(hydra, s, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), 3)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, state[k])}
    scored = set(chosen_weights(model, "all"))
    assert changed <= scored | {k for k in state if "running" in k or "num_batches" in k}
    assert any("running_mean" in k for k in changed)


@pytest.mark.parametrize("kind", [Hydra, S2AP])
def test_the_share_is_exact_after_every_step_and_the_deployed_network_is_the_masked_one(kind: Any) -> None:
    hydra = kind(sparsity=87.0)
    loop = Loop([hydra], AdamSpec(lr=0.05))
    first = {k: m.clone() for k, m in zip(loop_scores(loop), masks_of(loop), strict=True)}
    for _ in range(6):
        loop.one_step()
        own = dict(loop.model.named_parameters())
        for (name, w), mask in zip(hydra.memory["weights"].items(), masks_of(loop), strict=True):
            assert int((~mask).sum()) == round(0.87 * w.numel())
            assert torch.equal(own[name], w * mask)
            assert torch.equal(loop.deployed().state_dict()[name], w * mask)
    moved = [bool((m != first[k]).any()) for k, m in zip(loop_scores(loop), masks_of(loop), strict=True)]
    assert any(moved), "a search that never changes its mask is none"
    assert set(loop.deployed().state_dict()) == set(made(tiny).state_dict())


def loop_scores(loop: Loop) -> dict[str, Tensor]:
    scores: dict[str, Tensor] = loop.defenses[-1].memory["scores"]
    return scores


def masks_of(loop: Loop) -> list[Tensor]:
    hydra = loop.defenses[-1]
    assert isinstance(hydra, Hydra)
    return hydra.masks(list(loop_scores(loop).values()))


def test_the_stage_after_holds_what_was_found() -> None:
    loop = Loop([Hydra(sparsity=80.0)], SGDSpec(lr=0.1, momentum=0.9)).run(5)
    found, masked = masks_of(loop), weights(loop.model)
    hydra, s = loop.defenses[0], loop.steps[0]
    for _ in range(2):  # a third and a fourth stage
        s.stage += 1
        hydra.begin(s)
        assert equal(hydra.memory["kept"].values(), found)
        assert set(hydra.memory) == {"kept"}
    assert equal(weights(loop.model).values(), masked.values())
    loop.optimizer = s.optimizer = SGDSpec(lr=0.1, momentum=0.9, weight_decay=1e-2).build(loop.model)
    before = weights(loop.model)
    loop.run(4)
    for (k, w), mask in zip(weights(loop.model).items(), found, strict=True):
        assert torch.equal(w == 0, ~mask)
        assert (w != before[k])[mask].any()


def test_a_kill_in_the_stage_after_costs_nothing() -> None:
    """What resumes calls ``begin`` with an empty memory before it is put back."""

    def second(loop: Loop) -> Loop:
        loop.defenses[0].begin(loop.steps[0])
        loop.optimizer = loop.steps[0].optimizer = SGDSpec(lr=0.1, momentum=0.9).build(loop.model)
        return loop

    def searched() -> Loop:
        return Loop([Hydra(sparsity=80.0)]).run(4)

    unbroken = second(searched()).run(4)
    broken = second(searched()).run(2)
    resumed = second(Loop([Hydra(sparsity=80.0)]))
    resumed.load(broken.saved(), 6).losses.clear()
    same_run(resumed.run(2), unbroken, 6)


PARTNERS: dict[str, list[Any]] = {
    "ema first": [EMA(decay=0.9)],
    "trades": [TRADES(steps=2)],
    "awp": [PGDAT(steps=1), AWP(gamma=0.05)],
    "ensemble": [EnResNet(), PGDAT(steps=1)],
}


@pytest.mark.parametrize("partner", PARTNERS)
@pytest.mark.parametrize("kind", [Hydra, S2AP])
def test_order_among_defenses_does_not_matter_for_what_is_held(kind: Any, partner: str) -> None:
    others = PARTNERS[partner]
    for order in ([*others, kind(sparsity=80.0)], [kind(sparsity=80.0), *others]):
        loop = Loop([fresh(d) for d in order], SGDSpec(lr=0.1, momentum=0.9)).run(5)
        hydra = next(d for d in loop.defenses if isinstance(d, Hydra))
        masks = hydra.masks(list(hydra.memory["scores"].values()))
        own = dict(loop.model.named_parameters())
        for (name, w), mask in zip(hydra.memory["weights"].items(), masks, strict=True):
            assert torch.equal(own[name], w * mask)
        assert all(math.isfinite(loss) for loss in loop.losses)
        assert loop.logits().isfinite().all()
        assert (zero_shares(loop.deployed())["weight_sparsity"] or 0) >= 80 - 0.2


def test_how_much_of_the_first_mask_is_left() -> None:
    loop = Loop([Hydra(sparsity=50.0)])
    assert end_epoch(loop.defenses[0], loop.steps[0], 0) == {"first_mask": 100.0}
    loop.run(6)
    left = end_epoch(loop.defenses[0], loop.steps[0], 1)["first_mask"]
    assert 50 < left < 100


# S2AP --------------------------------------------------------------------------------------------------------


def test_the_worst_scores_lie_on_the_sphere_along_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, gradients = ([torch.randn(4, 3, generator=generator) for _ in range(2)] for _ in range(2))
    gradients[1].zero_()
    moved = S2AP(gamma=0.2).worst(scores, gradients)
    z = moved[0] - scores[0]
    assert torch.linalg.vector_norm(z) == pytest.approx(
        0.2 * torch.linalg.vector_norm(scores[0]).item(), rel=1e-5
    )
    cosine = F.cosine_similarity(z.flatten(), gradients[0].flatten(), dim=0)
    assert cosine.item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(moved[1], scores[1])


def test_scores_step_from_where_they_are_along_the_gradient_at_the_worst_point() -> None:
    model = lived(SMALL).double().train()
    start = weights(model)
    s2ap = S2AP(sparsity=60.0, gamma=0.5)
    s = begin(s2ap, model)
    s.x, s.y = IMAGES.double(), LABELS

    def loss() -> Tensor:
        return F.cross_entropy(model(s.x), s.y)

    s.objective = loss
    s.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scores = {k: initial_scores(w) for k, w in start.items()}
    own = dict(model.named_parameters())

    def at(points: dict[str, Tensor]) -> dict[str, Tensor]:
        """The straight-through gradient at some scores."""
        masks = s2ap.masks(list(points.values()))
        with torch.no_grad():
            for (k, w), mask in zip(start.items(), masks, strict=True):
                own[k].copy_(w * mask)
        found = torch.autograd.grad(loss(), [own[k] for k in points])
        return {k: g * start[k] * points[k].sign() for (k, g) in zip(points, found, strict=True)}

    here = at(scores)
    worst = {k: a + 0.5 * a.norm() * here[k] / here[k].norm() for k, a in scores.items()}
    there = at(worst)
    at(scores)  # the network as it was
    s2ap.before_forward(s)
    for (k, w), mask in zip(start.items(), s2ap.masks(list(worst.values())), strict=True):
        assert torch.equal(own[k], w * mask)
    s.optimizer.zero_grad()
    loss().backward()  # type: ignore[no-untyped-call]
    s2ap.after_backward(s)
    for (k, w), mask in zip(start.items(), s2ap.masks(list(scores.values())), strict=True):
        assert torch.equal(own[k], w * mask)
    s2ap.before_step(s)
    s.optimizer.step()
    s2ap.after_step(s)
    for k, a in scores.items():
        torch.testing.assert_close(s2ap.memory["scores"][k], a - 0.1 * there[k])


def test_without_a_radius_or_before_its_time_it_is_hydra() -> None:
    plain = Loop([Hydra(sparsity=60.0)]).run(5)
    for s2ap in (S2AP(sparsity=60.0, gamma=0.0), S2AP(sparsity=60.0, gamma=0.5, warm_up=2)):
        same_run(Loop([s2ap]).run(5), plain, 0)
    assert Loop([S2AP(sparsity=60.0, gamma=0.5, warm_up=1)]).run(5).losses != plain.losses


# Refused -----------------------------------------------------------------------------------------------------


def test_without_a_stage_before_it_or_with_a_regularised_optimizer_it_is_refused() -> None:
    model = lived(SMALL)
    s = step_of(model)
    s.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"^stages: expected a stage of pretraining .* got 'stage 0'$"):
        Hydra(sparsity=90.0).check_stage(s)
    Hydra().check_stage(s)
    s.stage = 1
    Hydra(sparsity=90.0).check_stage(s)
    s.optimizer = LinBreg(model.parameters(), lr=0.1, lam=0.1)
    with pytest.raises(ValueError, match=r"^optimizer: expected one without a regulariser"):
        Hydra(sparsity=90.0).check_stage(s)
    with pytest.raises(ValueError, match=r"^layers: expected a network with such weights"):
        Hydra(sparsity=90.0, layers="conv").check(model)


def test_asked_is_what_is_there_and_memory_survives_a_file() -> None:
    loop = Loop([Hydra(sparsity=33.3)]).run(2)
    asked = loop.defenses[0].asked(loop.model)
    assert asked is not None
    assert asked.binding
    assert zero_shares(loop.deployed())["weight_sparsity"] == pytest.approx(asked.percent)
    file = io.BytesIO()
    torch.save(loop.defenses[0].state_dict(), file)
    file.seek(0)
    assert set(torch.load(file, weights_only=True)) == {"weights", "scores"}
