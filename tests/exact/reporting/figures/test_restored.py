"""Images clean, degraded and restored, by a network whose output is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from robustbench_sparse.data.digits import Digits
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import write_json
from robustbench_sparse.models.build import build_network
from robustbench_sparse.reporting.figures.restored import Restored
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.seals import seal
from tests.helpers.fabricated_runs import fabricated, plan_of

JUDGED = (3, 7, 11, 20)


def run_of(folder: Path, seed: int = 0, tau: float = 0.5, **task: Any) -> RunFolder:
    """A network that multiplies its input by tau: nothing but a skip from the input to the output is not zero."""
    dataset = Digits().load(None, None)
    plan = plan_of(
        task={"name": "restore", **task}, model={"name": "dense_residual", "layers": 2}, attacks={},
        train={"epochs": 1},
    )  # fmt: skip
    network = build_network(plan.runs[0].model, [], 1, 8, None, seed=0)
    state = {k: torch.zeros_like(v) for k, v in network.state_dict().items()}
    state["layers.1.skip"][0] = tau
    run = fabricated(folder, state, plan=plan, seed=seed, dataset=dataset)
    (run.path / "outcomes").mkdir()
    about = {"status": "ok", "reason": "", "n": len(JUDGED), "seconds": 1.0, "key": {}}
    write_json(run.path / "outcomes" / "clean.json", about)
    rows = {"index": JUDGED, "mse": 0.01, "psnr": 20.0, "ssim": [0.9, 0.8, math.nan, 0.6], "status": "ok"}
    pd.DataFrame(rows).to_csv(run.path / "outcomes" / "clean.csv", index=False)
    seal(run.path)
    return run


def picture(ax: Any) -> np.ndarray[Any, Any]:
    return np.asarray(ax.images[0].get_array())


def test_each_line_shows_what_it_says(tmp_path: Path) -> None:
    run, figure = run_of(tmp_path), Figure()
    Restored(images=(7, 3)).draw(figure, [run])
    clean, degraded, restored = (figure.axes[i : i + 2] for i in (0, 2, 4))
    truth = Digits().load(None, None).test_x[[7, 3], 0].float().numpy() / 255
    for i in range(2):
        np.testing.assert_array_equal(picture(clean[i]), truth[i])
        np.testing.assert_array_equal(picture(degraded[i]), truth[i])  # no noise, no blur
        np.testing.assert_allclose(picture(restored[i]), truth[i] / 2, atol=1e-7)
    assert [row[0].get_ylabel() for row in (clean, degraded, restored)] == ["clean", "degraded", "r"]
    assert [ax.get_xlabel() for ax in restored] == ["20.0 dB, 0.80", "20.0 dB, 0.90"]
    assert [ax.get_xlabel() for ax in degraded] == ["as clean"] * 2
    assert [ax.get_title() for ax in clean] == ["image 7", "image 3"]


def test_the_noise_is_that_of_the_judge_whatever_images_are_shown(tmp_path: Path) -> None:
    run = run_of(tmp_path, noise=0.1, tau=1.0)
    together, alone = Figure(), Figure()
    Restored().draw(together, [run])
    Restored(images=(11,)).draw(alone, [run])
    assert len(together.axes) == 3 * len(JUDGED)
    np.testing.assert_array_equal(picture(together.axes[len(JUDGED) + 2]), picture(alone.axes[1]))
    # The network gives its input back.
    np.testing.assert_array_equal(picture(alone.axes[2]), picture(alone.axes[1]))
    difference = picture(alone.axes[1]) - picture(alone.axes[0])
    assert 0 < np.abs(difference).max() < 0.6
    # 64 pixels of deviation 0.1 have a mean square of 0.01, 20 dB, give or take 0.8 dB (one standard error).
    decibels = float(alone.axes[1].get_xlabel().removesuffix(" dB"))
    assert abs(decibels - 20) < 3
    assert together.axes[2 * len(JUDGED) + 2].get_xlabel() == "20.0 dB"  # too small an image for SSIM


def test_tasks_stand_below_each_other(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "a"), run_of(tmp_path / "b", blur_size=3), run_of(tmp_path / "a", seed=1)]
    figure = Figure()
    Restored(images=(3,)).draw(figure, runs)
    titles = [ax.get_ylabel() for ax in figure.axes]
    assert titles == [
        "clean", "degraded", "a: r, seed 0", "a: r, seed 1", "degraded", "b: r, seed 0"
    ]  # fmt: skip
    blurred = picture(figure.axes[4])
    assert blurred.max() < picture(figure.axes[0]).max()


def test_what_is_not_there(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with pytest.raises(UserError, match=r"--images 4: .* was not judged on this image"):
        Restored(images=(4,)).draw(Figure(), [run])
    classifier = fabricated(tmp_path / "c", {"fc.weight": torch.ones(2, 2)})
    with pytest.raises(UserError, match="its network classifies: take a run whose config has task: restore"):
        Restored().draw(Figure(), [classifier])
    for name in ("clean.csv", "clean.json"):
        (run.path / "outcomes" / name).unlink()
    seal(run.path)
    with pytest.raises(UserError, match="not judged on the degraded images: incomplete: clean"):
        Restored().draw(Figure(), [run])
