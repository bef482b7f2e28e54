"""Accuracy at every radius from one outcome: on a linear network it is the count of known distances."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from attacks import CW, FAB, PGD, Geometric
from attacks.base import Attack, Norm, SampleRandom, Threat
from attacks.noise import GaussianNoise
from robustbench_sparse.cli import main as cli
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import plain
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.judging.judge import Judge, JudgeSettings
from robustbench_sparse.reporting.curve import curve, plot, text_of
from robustbench_sparse.runs.outcomes import verdicts
from robustbench_sparse.runs.seals import seal

N, WRONG = 30, 3


class Plane(nn.Module):
    """Two classes on either side of the hyperplane <w, x - 1/2> = 0."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(torch.randn(16, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        side = (x.flatten(1) - 0.5) @ self.w
        return torch.stack((-side, side), 1)

    def distance(self, x: Tensor, norm: Norm) -> Tensor:
        side = ((x.flatten(1) - 0.5) @ self.w).abs().detach()
        return side / (self.w.abs().sum() if norm == "linf" else self.w.norm()).detach()


NET = Plane().eval()


def images() -> PreparedData:
    """Grey images, far from the box's faces; the last ones have the wrong label."""
    g = torch.Generator().manual_seed(1)
    x = torch.randint(100, 156, (N, 1, 4, 4), generator=g, dtype=torch.uint8)
    y = NET(x / 255).argmax(1)
    y[-WRONG:] = 1 - y[-WRONG:]
    data = Dataset(name="toy", label="toy", train_x=x, train_y=y, test_x=x, test_y=y, classes=("a", "b"))
    return PreparedData(data, validation=0)


def known(norm: Norm) -> Tensor:
    x, _ = images().gather("test", torch.arange(N))
    distance = NET.distance(x, norm)
    distance[-WRONG:] = 0
    return distance


@dataclass(frozen=True, kw_only=True)
class Straight(Attack):
    """Goes ``share`` of the way to the hyperplane and beyond, along the shortest path."""

    bounded: ClassVar[bool] = False
    share: float = 1.001

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        w = NET.w.detach()
        step = w.sign() if threat.norm == "linf" else w / w.norm()
        towards = torch.where(y == 1, -1.0, 1.0) * self.share * NET.distance(x, threat.norm)
        return x + (towards[:, None] * step).view_as(x)


def judged(home: Path, *, norm: Norm = "linf", eps: float = 0.02, **attacks: Attack) -> Path:
    """A run's folder with the outcomes of these attacks."""
    run, threat = home / "bench" / "runs" / "a-0", Threat(norm=norm, eps=eps)
    judge = Judge(NET, images(), run, JudgeSettings(seed=2, batch_size=8), "weights", Silent())
    plans = [AttackPlan(label, label, attack, threat) for label, attack in attacks.items()]
    judge.everything(plans)
    (run / "run.json").write_text(json.dumps({"run_id": "a-0"}))
    manifest = {
        "name": "bench",
        "dataset": "toy",
        "attacks": list(attacks),
        "settings": {p.label: plain(p.record()) for p in plans},
        "threat": {"norm": norm, "eps": eps},
        "runs": [{"run_id": "a-0", "run": "a", "seed": 0}],
        "published": {},
    }
    (home / "bench" / "benchmark.json").write_text(json.dumps(manifest))
    seal(run)
    return run


def between(distance: Tensor) -> list[float]:
    """Radii half way between neighbouring distances that are not too close for a search to tell apart."""
    d = distance.unique()
    return [float((a + b) / 2) for a, b in itertools.pairwise(d) if b > 1.05 * a]


def column(run: Path, attack: str) -> float:
    manifest = json.loads((run.parent.parent / "benchmark.json").read_text())
    return 100 * float(verdicts(run, manifest).columns[attack].mean())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [FAB(steps=10), Straight()])
def test_the_curve_of_a_linear_network_is_the_count_of_its_distances(
    tmp_path: Path, attack: Attack, norm: Norm
) -> None:
    run, distance = judged(tmp_path, norm=norm, eps=0.01, a=attack), known(norm)
    stored = pd.read_csv(run / "outcomes" / "a.csv")["distance"]
    assert stored.to_numpy() == pytest.approx(distance.numpy(), rel=0.02)
    assert (stored[N - WRONG :] == 0).all()
    eps = between(distance)
    assert len(eps) >= 10
    table = curve(run, "a", eps)
    for row, radius in zip(table.to_dict("records"), eps, strict=True):
        standing = int((distance > radius).sum())
        low, high = wilson(standing, N)
        assert row == pytest.approx(
            {"eps": radius, "accuracy": 100 * standing / N, "lo": 100 * low, "hi": 100 * high, "n": N}
        )


def test_the_default_radii_go_beyond_the_farthest_distance(tmp_path: Path) -> None:
    table = curve(judged(tmp_path, a=FAB(steps=10)), "a")
    assert len(table) == 21
    assert table["eps"].iloc[-1] == pytest.approx(1.5 * float(known("linf").max()), rel=0.01)
    assert table["eps"].diff()[1:].to_numpy() == pytest.approx(table["eps"].iloc[-1] / 20)
    assert table["accuracy"].is_monotonic_decreasing
    assert table["accuracy"].iloc[0] == pytest.approx(100 * (N - WRONG) / N), "at 0: clean"
    assert table["accuracy"].iloc[-1] == 0
    assert table.attrs == {"run": "a-0", "attack": "a", "norm": "linf", "eps": 0.02}


def test_what_was_not_found_holds_at_every_radius(tmp_path: Path) -> None:
    run = judged(tmp_path, eps=0.02, a=Straight(share=0.9))
    stored = pd.read_csv(run / "outcomes" / "a.csv")["distance"]
    assert sorted(set(stored)) == [0, math.inf], "inf is read back"
    table = curve(run, "a")
    assert table["eps"].iloc[-1] == pytest.approx(0.04)
    assert (table["accuracy"] == 100 * (N - WRONG) / N).all()
    assert curve(run, "a", [math.inf])["accuracy"][0] == pytest.approx(100 * (N - WRONG) / N)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_at_its_own_radius_it_is_the_attacks_column(tmp_path: Path, norm: Norm) -> None:
    own = float(known(norm).median())
    run = judged(tmp_path, norm=norm, eps=own, cw=CW(steps=60, search_steps=6), a=Straight(share=1.0001))
    for label in ("cw", "a"):
        at_own = curve(run, label, [own])["accuracy"][0]
        assert at_own == pytest.approx(column(run, label))
        assert 20 < at_own < 80


def test_the_curve_counts_as_the_column_does_where_candidates_were_projected(tmp_path: Path) -> None:
    own = float(known("linf").median())
    run = judged(tmp_path, eps=own, a=Straight(share=1.5))
    stored = pd.read_csv(run / "outcomes" / "a.csv")
    projected = (stored["adv_correct"] == 0) & (stored["distance"] > own + 1e-6)
    assert projected.sum() >= 3  # fooled in the ball, though what the attack returned lies outside
    below, at_own = curve(run, "a", [0.999 * own, own])["accuracy"]
    assert at_own == column(run, "a")
    assert below >= at_own + 100 * float(projected.mean())


def test_the_curve_of_a_random_network_counts_shares_as_the_column_does(tmp_path: Path) -> None:
    run = judged(tmp_path, a=Straight(share=1.5))
    path = run / "outcomes" / "a.csv"
    shares = [0.1, 0.3, 0.7, 0.9]
    table = pd.read_csv(path)
    given = pd.Series([shares[i % 4] for i in range(len(table))])
    unmoved = table["status"] == "ok"
    assert unmoved.any()
    assert not unmoved.all()
    table["far_correct"] = given.where(unmoved, table["far_correct"])
    table["adv_correct"] = given
    table.to_csv(path, index=False)
    seal(run)
    assert curve(run, "a", [0.02])["accuracy"][0] == pytest.approx(column(run, "a"))


def test_a_distance_on_the_edge_of_the_ball_lies_inside(tmp_path: Path) -> None:
    """As the judge has it: rounding must not make an image hold."""
    run = judged(tmp_path, a=Straight())
    path = run / "outcomes" / "a.csv"
    edge = 0.02 + 5e-7
    pd.read_csv(path).assign(distance=edge, linf=edge, adv_correct=0, far_correct=0).to_csv(path, index=False)
    seal(run)
    clean = 100 * pd.read_csv(path)["clean_correct"].mean()
    assert curve(run, "a", [0.0, 0.0199, 0.02])["accuracy"].tolist() == [clean, clean, 0]


def refused(run: Path, attack: str, *eps: float) -> str:
    with pytest.raises(UserError) as error:
        curve(run, attack, eps or None)
    return str(error.value)


def test_what_has_no_curve_says_why(tmp_path: Path) -> None:
    run = judged(
        tmp_path,
        pgd=PGD(steps=2),
        turn=Geometric(angles=3, shifts=1),
        noise=GaussianNoise(sigma=0.1),
        inner=FAB(steps=2, within=True),
        a=Straight(),
    )
    assert "stays inside its ball" in refused(run, "pgd")
    for label in ("turn", "noise", "inner"):
        assert "does not seek the smallest perturbation" in refused(run, label)
    assert refused(run, "aa").startswith("--attack aa: no such attack (did you mean 'a'")
    assert refused(run, "a", 0.1, -0.1) == "--eps: expected numbers >= 0, got [0.1, -0.1]"
    assert "--eps: expected numbers" in refused(run, "a", math.nan)
    assert "no run.json" in refused(tmp_path, "a")
    path = run / "outcomes" / "a.csv"
    table = pd.read_csv(path)
    table.assign(distance=table["distance"].where(table["index"] > 4)).to_csv(path, index=False)
    assert "a.csv: changed since it was stored" in refused(run, "a")
    seal(run)
    assert "distances are missing; delete it" in refused(run, "a")
    table.assign(distance=-1.0).to_csv(path, index=False)
    seal(run)
    assert "damaged: expected numbers >= 0 in distance" in refused(run, "a")
    path.with_suffix(".json").unlink()
    assert "a.json: missing" in refused(run, "a")


def test_no_attack_looks_for_anything_at_eps_0(tmp_path: Path) -> None:
    assert "judged at eps = 0" in refused(judged(tmp_path, eps=0.0, a=Straight()), "a")


def test_old_outcomes_are_still_whole_but_have_no_curve(tmp_path: Path) -> None:
    run = judged(tmp_path, a=Straight())
    path = run / "outcomes" / "a.csv"
    pd.read_csv(path).drop(columns="distance").to_csv(path, index=False)
    meta = json.loads(path.with_suffix(".json").read_text())
    del meta["minimum_norm"]
    path.with_suffix(".json").write_text(json.dumps(meta))
    seal(run)
    assert refused(run, "a") == f"{path}: judged before distance was kept; delete it to judge again"
    assert column(run, "a") >= 0
    judge = Judge(NET, images(), path.parents[1], JudgeSettings(seed=2, batch_size=8), "weights", Silent())
    plan = AttackPlan("a", "a", Straight(), Threat(eps=0.02))
    assert judge.store.is_done("a", judge.key(plan))
    path.unlink()
    judge.attack(plan)
    assert len(curve(run, "a")) == 21


# The command --------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_or_csv(tmp_path: Path) -> None:
    run = judged(tmp_path, a=Straight(), pgd=PGD(steps=2))
    call = CliRunner().invoke
    shown = call(cli.app, ["curve", str(run), "--attack", "a", "--eps", "0, 8/255"])
    assert shown.exit_code == 0
    assert shown.stdout == text_of(curve(run, "a", [0.0, 8 / 255]))
    assert shown.stdout.startswith("a-0: a, linf, n = 30\n")
    assert [line.split()[:2] for line in shown.stdout.splitlines()[-2:]] == [
        ["0", "90.0"],
        ["0.031373", "0.0"],
    ]
    raw = call(cli.app, ["curve", str(run), "--attack", "a", "--format", "csv"]).stdout.splitlines()
    assert raw[0] == "eps,accuracy,lo,hi,n"
    assert len(raw) == 22
    for words, part in (
        (["--attack", "pgd"], "stays inside its ball"),
        (["--attack", "a", "--eps", "0,x"], "--eps: expected a number >= 0 such as 8/255, got 'x'"),
        (["--attack", "a", "--format", "x"], "--format: expected table, csv, got 'x'"),
    ):
        result = call(cli.app, ["curve", str(run), *words])
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert part in result.stderr


def test_a_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    run = judged(tmp_path, a=Straight())
    words = ["curve", str(run), "--attack", "a", "--plot"]
    result = CliRunner().invoke(cli.app, [*words, str(tmp_path / "new" / "c.png")])
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "new" / "c.png").read_bytes().startswith(b"\x89PNG")
    assert result.stderr == f"\nwritten: {tmp_path / 'new' / 'c.png'}\n"
    plot(curve(run, "a", [0.0, math.inf]), tmp_path / "c.svg")
    drawn = (tmp_path / "c.svg").read_text()
    assert "<svg" in drawn
    wrong = CliRunner().invoke(cli.app, [*words, "c.xyz"])
    assert wrong.exit_code == 2
    assert "expected a file ending in one of ." in wrong.stderr


def test_a_plot_without_matplotlib_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = judged(tmp_path, a=Straight())
    result = CliRunner().invoke(
        cli.app, ["curve", str(run), "--attack", "a", "--plot", str(tmp_path / "c.png")]
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: --plot: needs matplotlib, which comes with the extra 'plot' of robustbench_sparse\n"
    )
