"""The page on methods of one's own runs: its files are written out, its config is run, its claims are looked at."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from robustbench_sparse.cli.main import app
from tests.helpers.commands import call

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"
KINDS = ("attack", "trades", "regulariser", "optimizer", "model", "data", "check")


def blocks() -> dict[str, str]:
    """The files of the page: fenced blocks whose first line is a comment with a file's name."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return dict(found)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's files; the user is in another one."""
    (tmp_path / "page").mkdir()
    for name, text in blocks().items():
        (tmp_path / "page" / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "page"
    for name in blocks():
        sys.modules.pop(name.removesuffix(".py"), None)


def test_every_kind_has_its_file() -> None:
    assert set(blocks()) == {*(f"my_{kind}.py" for kind in KINDS), "extending.yaml"}
    text = PAGE.read_text(encoding="utf-8")
    for block in re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("robustbench-sparse "):
                assert line.split()[1] in {
                    c.name or c.callback.__name__ for c in app.registered_commands if c.callback
                }


def test_the_page_runs(home: Path, tmp_path: Path) -> None:
    result = call("run", home / "extending.yaml", "--out", tmp_path / "out", "--jobs", "1", "-q")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "extending" / "leaderboard.csv", keep_default_na=False)
    assert table["run"].tolist() == ["natural", "trades", "rounded_lasso"]
    assert (table["dataset"] == "Stripes").all()
    assert table["model"].str.startswith("my_model:network").all()
    assert table["protocol"].str.contains("-own").all()
    assert "MyTrades(beta=2" in table["defenses"][1]
    assert (table["clean"].astype(float) > 60).all()  # of three classes
    assert (table["mine"].astype(float) <= table["clean"].astype(float)).all()
    run = tmp_path / "out" / "extending" / "runs" / table["run_id"][1]
    assert "X_small_noise" in call("explain", run).stdout


def test_the_regulariser_is_what_it_says(home: Path) -> None:
    scope: dict[str, Any] = {"__name__": "page"}
    exec(compile(blocks()["my_regulariser.py"], "my_regulariser.py", "exec", dont_inherit=True), scope)
    huber = scope["Huber"](delta=0.2)
    w = torch.linspace(-1, 1, 41, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(huber.value(w), w)
    assert torch.allclose(gradient, huber.subgrad(w.detach()))
    step = 0.3
    u = huber.prox(w.detach(), step)
    assert torch.allclose(u + step * huber.subgrad(u), w.detach())  # what makes it the minimum
