"""Bregman iterations of total variation: closed forms, the inequalities of the theory, early stopping."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.studies.base import Array
from robustbench_sparse.studies.bregman_tv import (
    BregmanTV,
    BregmanTVResult,
    drawn,
    prox_tv,
    read,
    step,
    total_variation,
)


def two_levels(rows: int = 4, columns: int = 10, jump: float = 1.0) -> Array:
    image = np.zeros((rows, columns))
    image[:, columns // 2 :] = jump
    return image


@pytest.fixture(scope="module")
def result() -> BregmanTVResult:
    return BregmanTV(size=24, tau=1.0, iterations=40, inner=1000).run(Silent())


def test_total_variation_of_simple_images() -> None:
    assert total_variation(two_levels(7, 10, 2.5)) == pytest.approx(7 * 2.5)
    point = np.zeros((5, 5))
    point[2, 2] = 1
    assert total_variation(point) == pytest.approx(2 + math.sqrt(2))
    assert total_variation(np.full((3, 4), 0.7)) == 0
    y, x = np.mgrid[0:6, 0:6]
    assert total_variation(3.0 * x + 4.0 * y) == pytest.approx(25 * 5 + 5 * 3 + 5 * 4)


@pytest.mark.parametrize("weight", [0.5, 2.0, 4.0])
def test_the_map_of_two_levels_brings_them_together(weight: float) -> None:
    """Each side moves by weight / (columns / 2); they meet at the mean."""
    jump = max(1 - 4 * weight / 10, 0)
    expected = two_levels(jump=jump) + (1 - jump) / 2
    np.testing.assert_allclose(prox_tv(two_levels(), weight, 3000), expected, atol=2e-3)


def test_bregman_iterations_of_two_levels_are_known() -> None:
    """Constant while the residuals add up, one step between, then f itself: the contrast comes back whole."""
    tau, f = 0.25, two_levels()  # 4 / (10 tau) = 1.6: the jump of f + v_k, k + 1, must be larger
    p, found = np.zeros_like(f), []
    for _ in range(4):
        u, p = step(f, p, tau, 6_000)
        found.append(u[0, -1] - u[0, 0])
        assert u.mean() == pytest.approx(0.5)
    assert found == pytest.approx([0, 0.4, 1, 1], abs=0.01)


def test_the_residual_falls_at_the_known_rate_without_noise() -> None:
    """Osher et al. 2005, theorem 3.3: ||u_k - f||^2 / 2 <= TV(f) / (tau k)."""
    f, tau = drawn(24, 1), 2.0
    p, last = np.zeros_like(f), math.inf
    for k in range(1, 15):
        u, p = step(f, p, tau, 800)
        loss = float(((u - f) ** 2).sum() / 2)
        assert loss <= total_variation(f) / (tau * k)
        assert loss <= last * (1 + 1e-6)
        last = loss
    assert last < 0.05


def test_subgradients_are_feasible_and_nearly_exact(result: BregmanTVResult) -> None:
    t = result.table
    assert (t["gap"] >= -1e-10).all()
    assert (t["gap"][1:] <= 0.03 * t["total_variation"][1:]).all()
    # A map that is broken off early is told by the gap.
    rough = BregmanTV(size=24, tau=1.0, iterations=2, inner=20).run(Silent()).table
    assert rough["gap"][1] > 0.2 * rough["total_variation"][1]


def test_the_bregman_distance_falls_until_the_residual_is_the_noise(result: BregmanTVResult) -> None:
    """D_(k+1) - D_k <= tau (L(u) - L(u_(k+1))), up to the gap by which p_k misses the subdifferential."""
    t = result.table
    assert result.noise_norm == pytest.approx(float(np.linalg.norm(result.noisy - result.clean)))
    distance, residual, gap = (t[c].to_numpy() for c in ("bregman_distance", "residual", "gap"))
    allowed = (result.noise_norm**2 - residual[1:] ** 2) / 2 + gap[:-1]
    assert (np.diff(distance) <= allowed + 1e-9).all()
    assert result.stopped is not None
    assert (np.diff(distance)[: result.stopped - 1] < 0).all()
    assert distance[-1] > 1.5 * distance.min()  # and it rises again, towards the noise


def test_iterates_go_from_a_constant_to_the_noisy_image(result: BregmanTVResult) -> None:
    t = result.table
    assert [*t["k"]] == [*range(41)]
    assert t["total_variation"][0] == 0
    assert t["residual"][0] == pytest.approx(float(np.linalg.norm(result.noisy - result.noisy.mean())))
    assert (t["residual"].diff().dropna() <= 1e-6).all()
    assert t["residual"][40] < 0.2 * result.noise_norm
    assert t["total_variation"][40] > 0.9 * total_variation(result.noisy)
    assert t["error"][40] == pytest.approx(result.noise_norm, rel=0.1)


def test_stopping_early_denoises(result: BregmanTVResult) -> None:
    errors = result.table["error"]
    assert 0 < result.best < 20
    assert errors[result.best] < 0.6 * result.noise_norm
    assert result.stopped is not None
    assert errors[result.stopped] < 1.3 * errors[result.best]
    assert result.table["residual"][result.stopped] <= result.noise_norm
    assert result.table["residual"][result.stopped - 1] > result.noise_norm
    assert any(f"k = {result.best}" in line for line in result.lines())


def test_too_few_iterations_do_not_stop() -> None:
    short = BregmanTV(size=16, iterations=1, tau=0.1, inner=50).run(Silent())
    assert short.stopped is None
    assert "does not stop" in short.lines()[1]


def test_the_seed_decides(result: BregmanTVResult) -> None:
    again = BregmanTV(size=24, tau=1.0, iterations=40, inner=1000).run(Silent()).table
    pd.testing.assert_frame_equal(result.table, again)
    image = drawn(32, 0)
    assert image.shape == (32, 32)
    assert 0 <= image.min() < image.max() <= 1
    assert not np.array_equal(image, drawn(32, 1))


def test_an_image_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    values = (255 * drawn(16, 4)).astype(np.uint8)
    Image.fromarray(np.stack([values] * 3, axis=-1)[:12]).save(path)
    found = BregmanTV(image=str(path), iterations=2, inner=20).run(Silent())
    np.testing.assert_allclose(found.clean, values[:12] / 255, atol=1.01 / 255)
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (2000, 4)).save(tmp_path / "long.png")
    for name, problem in {
        "text.png": "not a readable image",
        "long.png": "2 to 1024",
        "nope": "no such",
    }.items():
        with pytest.raises(UserError, match=rf"^image: .*{problem}"):
            read(tmp_path / name)


def test_without_scikit_image_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.restoration", None)
    with pytest.raises(UserError, match="needs scikit-image, which comes with the extra 'studies'"):
        BregmanTV(size=8, iterations=1).run(Silent())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed", -1), ("size", 7), ("size", 2000), ("noise", 0.0), ("tau", 0.0), ("tau", math.inf), ("iterations", 0),
        ("inner", 0),
    ],
)  # fmt: skip
def test_settings_are_checked(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{setting}: expected"):
        BregmanTV(**{setting: value})
