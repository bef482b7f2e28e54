"""What tests of other projects say, in plain Python: without the pytest plug-in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.testing import (
    NotComparable,
    assert_no_regression,
    assert_robust,
    assert_sparse,
    session,
)
from robustbench_sparse.testing.references import read
from tests.helpers.linear_nets import EPS, images, trained, truth


@pytest.fixture(autouse=True)
def outside_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests find is no finding about this project, and has no place in its own summary."""
    monkeypatch.setattr(session, "at_work", lambda: None)


class Linear(nn.Module):
    """Softmax regression on the digits; ``noise`` spoils its weights."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.linear.load_state_dict(trained().state_dict())
        with torch.no_grad():
            random = torch.Generator().manual_seed(1)
            self.linear.weight += noise * torch.randn(10, 64, generator=random)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(x.flatten(1))
        return logits


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = images()
    return x.reshape(-1, 1, 8, 8), y


def test_the_share_is_the_true_one_and_has_to_reach_what_was_asked() -> None:
    fgsm = truth()["fgsm"]
    model = Linear().train()
    assert_robust(model, data(), "fgsm", EPS, at_least=fgsm - 0.01)
    with pytest.raises(AssertionError, match=f"{fgsm:.1f} % of 60 images withstand"):
        assert_robust(model, data(), "fgsm", EPS, at_least=fgsm + 0.01)
    assert model.training, "the test's network is left as it was"


def test_a_reference_is_held_image_by_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"

    def held(noise: float, **more: Any) -> None:
        assert_robust(Linear(noise), data(), "fgsm", more.pop("eps", EPS), reference=path, row="net", **more)

    with pytest.raises(NotComparable, match="no row 'net'; pytest --rbs-update 'net' writes it"):
        held(0.0)
    with monkeypatch.context() as patch:
        patch.setattr(session, "is_renewed", lambda name: name == "net")
        with pytest.raises(AssertionError, match="1 row rewritten: net; look at the change"):
            held(0.0)
    row = read(path)["net"]
    assert row.percent == pytest.approx(truth()["fgsm"], abs=1e-3)
    assert 100 * row.networks[0].verdicts.count("1") / 60 == pytest.approx(truth()["fgsm"])
    held(0.0)
    with pytest.raises(AssertionError, match=r"fell below the reference:\nnet: .* lost, .*smallest drop"):
        held(1.0)
    with pytest.raises(NotComparable, match="another threat, so nothing is compared"):
        held(0.0, eps=EPS / 2)
    with pytest.raises(NotComparable, match=r"of seeds \[0\], measured \[1\]"):
        held(0.0, seed=1)
    with pytest.raises(NotComparable, match="at least 3 networks"):
        held(0.0, across_seeds=True)
    x, y = data()
    with pytest.raises(NotComparable, match="other images, so nothing is compared"):
        assert_robust(Linear(), (x[:50], y[:50]), "fgsm", EPS, reference=path, row="net")
    with pytest.raises(NotComparable, match="another protocol"):
        assert_robust(Linear(), (x, y), "pgd", EPS, reference=path, row="net")


def test_damaged_references_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    fine = {
        "protocol": "p", "images": "i", "threat": {"norm": "linf", "eps": 0.1}, "attacks": {}, "percent": 50.0,
        "networks": [{"seed": 0, "verdicts": "10"}], "made": {},
    }  # fmt: skip
    path.write_text(json.dumps({"format": 1, "rows": {"a": fine}}))
    assert list(read(path)) == ["a"]
    for change, where in (
        ({"networks": [{"seed": 0, "verdicts": "12"}]}, "rows.a.networks.0.verdicts"),
        ({"networks": []}, "rows.a.networks"),
        ({"more": 1}, "rows.a.more"),
        ({"threat": {"norm": "linf", "eps": -1.0}}, "rows.a.threat.eps"),
    ):
        path.write_text(json.dumps({"format": 1, "rows": {"a": {**fine, **change}}}))
        with pytest.raises(UserError, match=where):
            read(path)
    path.write_text(json.dumps({"format": 2, "rows": {}}))
    with pytest.raises(UserError, match="format"):
        read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "expected at_least=PERCENT or reference"),
        ({"at_least": 0.7}, r"at_least: expected percent in \(1, 100\], got 0.7"),
        ({"at_least": 50, "level": 0.7}, "level: expected a number"),
        ({"reference": "x.json"}, "row: expected the name"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        assert_robust(Linear(), data(), "fgsm", EPS, **change)


def test_zeros_are_counted_masks_folded() -> None:
    model = Linear()
    with torch.no_grad():
        model.linear.weight[:, :48] = 0
    assert_sparse(model, 75)
    with pytest.raises(
        AssertionError, match=r"75.00 % of the weights are zero, at least 76 % asked for; .*linear"
    ):
        assert_sparse(model, 76)
    masked = Linear()
    prune.l1_unstructured(masked.linear, "weight", 0.5)  # type: ignore[no-untyped-call]
    assert_sparse(masked, 50, kind="linear")
    assert hasattr(masked.linear, "weight_orig"), "the test's network is left as it was"
    with pytest.raises(UserError, match="kind: expected weight, linear"):
        assert_sparse(model, 50, kind="weights")
    with pytest.raises(UserError, match="no channels to count"):
        assert_sparse(nn.Linear(3, 3), 50, kind="channel")


def test_a_table_is_held_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robustbench_sparse import evaluate

    folder, path = tmp_path / "table", tmp_path / "x.json"
    evaluate(Linear(), data=data(), attacks=["fgsm"], eps=EPS, out=folder)
    with pytest.raises(NotComparable, match=r"no row of .*Linear/clean"):
        assert_no_regression(folder, path)
    with monkeypatch.context() as patch:
        patch.setattr(session, "is_renewed", lambda name: True)
        with pytest.raises(AssertionError, match="2 rows rewritten"):
            assert_no_regression(folder, path)
    assert_no_regression(folder, path)
    text = json.loads(path.read_text())
    (row,) = (r for name, r in text["rows"].items() if name.endswith("/worst"))
    better = row["networks"][0]["verdicts"]
    row["networks"][0]["verdicts"] = better.replace("0", "1")
    path.write_text(json.dumps(text))
    with pytest.raises(AssertionError, match="fell below the reference:\nLinear/worst: "):
        assert_no_regression(folder, path)
    assert_no_regression(folder, path, columns=["clean"])
    text["rows"]["gone/worst"] = row
    path.write_text(json.dumps(text))
    with pytest.raises(NotComparable, match=r"the row 'gone/worst' .* is gone"):
        assert_no_regression(folder, path)
