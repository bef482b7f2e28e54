"""CLIP in one dimension: what the study measures, and that larger lambda makes smoother networks."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.foundation.streams import derive
from robustbench_sparse.studies.clip_1d import CLIP1D, grid, network, outputs, steepest, truth

SMALL = {"samples": 20, "noise": 0.5, "width": 48, "steps": 300, "lr": 0.02, "pairs": 32}


@pytest.fixture(scope="module")
def result() -> pd.DataFrame:
    return CLIP1D(lams=(0.0, 0.02, 5.0), seeds=2, **SMALL).run(Silent()).table


def trained(lam: float) -> nn.Module:
    study = CLIP1D(**SMALL)
    return study.train(0, lam, Silent().start("", 1, ""))[0]


def test_slopes_on_the_grid() -> None:
    points = grid()
    assert steepest(truth(points)[:, 0].numpy()) == pytest.approx(2 * math.pi, rel=1e-5)
    kinked = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        kinked[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        kinked[2].weight.copy_(torch.tensor([[3.0, 1.0]]))
    assert steepest(outputs(kinked, points)) == pytest.approx(3)
    assert kinked[0].weight.dtype == torch.float32  # looked at in float64, left as it was


def test_networks_start_alike_and_their_kinks_lie_inside() -> None:
    a, b = (network(50, torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    kinks = -a[0].bias / a[0].weight[:, 0]
    assert ((kinks >= 0) & (kinks <= 1)).all()


def test_samples_are_noisy_values_of_the_truth() -> None:
    x, y = CLIP1D(samples=4000, noise=0.5).data(0)
    assert x.shape == y.shape == (4000, 1)
    assert (x.diff(dim=0) >= 0).all()
    assert 0 <= x.min() < x.max() <= 1
    assert (y - truth(x)).std().item() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(CLIP1D(noise=0.0).data(3)[1], truth(CLIP1D(noise=0.0).data(3)[0]))


def test_lambda_zero_is_plain_training() -> None:
    study = CLIP1D(**SMALL)
    x, y = study.data(0)
    model = network(48, torch.Generator().manual_seed(derive(0, "clip_1d/init")))
    optimizer = torch.optim.Adam(model.parameters(), lr=study.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, study.steps)
    for _ in range(study.steps):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        schedule.step()
    assert np.array_equal(outputs(trained(0.0), grid()), outputs(model, grid()))


def test_larger_lambda_fits_less_and_is_smoother(result: pd.DataFrame) -> None:
    for _, of_seed in result.groupby("seed"):
        assert (of_seed["train_mse"].diff().dropna() > 0).all()
        assert (of_seed["lipschitz"].diff().dropna() < 0).all()
    means = result.groupby("lambda")[["truth_mse", "lipschitz"]].mean()
    assert means["truth_mse"].idxmin() == 0.02  # neither the noisy nor the stiff one
    assert means["lipschitz"][0.0] > 4 * means["lipschitz"][0.02]


def test_the_largest_lambda_gives_the_mean_of_the_labels(result: pd.DataFrame) -> None:
    """Roith, thesis, proposition 1.3: for squared error the constant is the labels' mean."""
    stiff = result[result["lambda"] == 5.0]
    assert (stiff["lipschitz"] < 0.3).all()
    study = CLIP1D(**SMALL)
    for _, row in stiff.iterrows():
        y = study.data(int(row["seed"]))[1]
        assert row["train_mse"] == pytest.approx(float(y.var(correction=0)), rel=0.1)
    assert outputs(trained(5.0), grid()).mean() == pytest.approx(float(study.data(0)[1].mean()), abs=0.1)


def test_pairs_never_see_more_than_there_is(result: pd.DataFrame) -> None:
    plain = result["lambda"] == 0
    assert result["lipschitz_pairs"].isna().equals(plain)
    seen = result[~plain]
    assert (seen["lipschitz_pairs"] <= seen["lipschitz"] * 1.02 + 0.02).all()
    soft = seen[seen["lambda"] < 1]  # the stiff ones have no slope to speak of
    assert (soft["lipschitz_pairs"] >= 0.8 * soft["lipschitz"]).all()


def test_the_same_seed_gives_the_same_numbers() -> None:
    tiny = {**SMALL, "steps": 20, "lams": (0.1,), "seeds": 1}
    first, second = (CLIP1D(**tiny).run(Silent()).table for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert CLIP1D(**tiny, seed=1).run(Silent()).table["train_mse"][0] != first["train_mse"][0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed", -1), ("lams", ()), ("lams", (-0.1,)), ("lams", (0.1, 0.1)), ("seeds", 0), ("samples", 1),
        ("noise", -1.0), ("width", 0), ("steps", 0), ("lr", 0.0), ("pairs", 0),
    ],
)  # fmt: skip
def test_settings_are_checked(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{setting}: expected"):
        CLIP1D(**{setting: value})
