"""The whole certificate on networks broken on purpose, and on honest ones: no blind spot, no false alarm."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks import APGD, FGSM, PGD, Attack, Threat
from defenses import Broken
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.examination import Examination
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.judging.judge import Judge, JudgeSettings
from robustbench_sparse.judging.relatives import Relative, Relatives
from tests.helpers.certificate_subjects import CLASSES, EPS, FIRST, digits, trained

pytestmark = pytest.mark.slow

SMALL = replace(
    BUDGETS["quick"], images=72, random_images=48, few=20, queries=400, random_draws=300, inner_points=99
)
WEAK: list[tuple[str, Attack]] = [("fgsm", FGSM()), ("pgd", PGD(steps=20))]
STRONG: list[tuple[str, Attack]] = [
    *WEAK,
    ("pgd", PGD(steps=50, restarts=3, eot=10)),
    ("apgd", APGD(steps=50, restarts=3, loss="margin", eot=10)),
]
# At least one of these must fail for a kind that is not broken outright.
RIGHT: dict[str, set[str]] = {
    "scaled_logits": {"V2", "M5"},
    "quantised_input": {"G1", "T2", "M9"},
    "gradient_killer": {"G1", "T2", "M9"},
    "k_wta": {"T2", "A1", "M7", "M9", "M13"},
    "sigmoid_outputs": {"V1", "G1"},
    "batch_noise": {"R2"},
    "noise": {"R3", "R4", "R5", "R6", "M13"},
    "constant_gradient": {"G1", "T2", "M9"},
    "jpeg": {"G1", "T2", "M9"},
}


@functools.cache
def data() -> PreparedData:
    """The images that the networks were not trained on are the test part."""
    x, y = digits()
    pixels = (x * 255).round().to(torch.uint8)
    names = tuple(str(k) for k in range(CLASSES))
    whole = Dataset(
        name="digits",
        label="digits",
        train_x=pixels[:FIRST],
        train_y=y[:FIRST],
        test_x=pixels[FIRST:],
        test_y=y[FIRST:],
        classes=names,
    )
    return PreparedData(whole, validation=0)


def judged(net: nn.Module, attacks: list[tuple[str, Attack]], folder: Path, kin: Relatives) -> dict[str, Any]:
    """A network judged and examined as a benchmark does it; its certificate and its rates in percent."""
    threat = Threat(eps=EPS)
    plans = [AttackPlan(f"{name}{i}", name, attack, threat) for i, (name, attack) in enumerate(attacks)]
    protocol = JudgeSettings(seed=1, batch_size=128, draws=10)
    judge = Judge(net, data(), folder, protocol, "weights", Silent())
    judge.everything(plans)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "quick", SMALL)
        Examination(judge, plans, "quick", threat, kin).make()
    made: dict[str, Any] = read_json(folder / "certificate" / "certificate.json")
    number = next(c["measured"] for c in made["checks"] if c["id"] == "M13")
    return {**made, "worst": number["worst_acc"], "reported": number["reported_acc"]}


@functools.cache
def twins_worst(folder: Path) -> float:
    return float(judged(trained(), STRONG, folder / "twin", Relatives(undefended=True))["worst"])


def twin(seed: int = 0) -> Relatives:
    return Relatives(twin=Relative("natural", lambda: trained(seed), f"natural {seed}"))


def k_wta() -> nn.Module:
    """Trained as it is: its selection is no layer to be put on afterwards."""
    x, y = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, CLASSES))  # noqa: E731
        net = Broken(how="k_wta").wrap(make)()
        opt = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(8):
            for rows in torch.randperm(FIRST).split(64):
                opt.zero_grad()
                F.cross_entropy(net.train()(x[rows]), y[rows]).backward()
                opt.step()
    return net.eval()


# What makes an image others and then asks for its gradient is quantised_input's case, too; a gradient that is there and
# wrong, gradient_killer's.
LIKE_OTHERS = {"jpeg", "constant_gradient"}


@pytest.mark.parametrize(
    "how", [pytest.param(h, marks=pytest.mark.long if h in LIKE_OTHERS else ()) for h in sorted(RIGHT)]
)
def test_every_broken_network_is_broken_or_named(
    how: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    net = k_wta() if how == "k_wta" else Broken(how=how).wrap(trained)().eval()  # type: ignore[arg-type]
    made = judged(net, WEAK, tmp_path, twin())
    broken = made["worst"] <= twins_worst(tmp_path_factory.getbasetemp()) + 0.03
    assert broken or made["verdict"] in ("refuted", "doubtful")
    if not broken:
        assert RIGHT[how] & set(made["flags"]), made["flags"]
    if how in (
        "quantised_input",
        "gradient_killer",
        "constant_gradient",
        "jpeg",
        "sigmoid_outputs",
        "scaled_logits",
    ):
        # What looked robust to the row's own attacks does so no more, and the row says so.
        assert made["reported"] > 0.5
        assert made["worst"] <= made["reported"] - 0.3
        # Corrected, where nothing points to more than what is counted; then the number is the twin's.
        assert made["verdict"] == "refuted" or (made["verdict"] == "corrected" and broken)
        assert RIGHT[how] & set(made["flags"]), made["flags"]


@functools.cache
def trades(seed: int) -> nn.Module:
    """Cross-entropy plus six times the divergence between clean and attacked outputs (Zhang et al. 2019)."""
    x, y = digits()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, CLASSES))
        opt = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(8):
            for rows in torch.randperm(FIRST).split(64):
                attacked = PGD(steps=3)(net.eval(), x[rows], y[rows], Threat(eps=EPS))
                clean, moved = net.train()(x[rows]), net(attacked)
                spread = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="batchmean")
                opt.zero_grad()
                (F.cross_entropy(clean, y[rows]) + 6 * spread).backward()
                opt.step()
    return net.eval()


@pytest.mark.parametrize("kind", ["natural", "pgd_at", "trades"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.long) for s in range(1, 5))])
def test_honest_networks_are_believable(seed: int, kind: str, tmp_path: Path) -> None:
    net = trades(seed) if kind == "trades" else trained(seed, kind == "pgd_at")
    kin = Relatives(undefended=True) if kind == "natural" else twin(seed)
    made = judged(net, STRONG, tmp_path, kin)
    failed = {c["id"]: c["measured"] for c in made["checks"] if c["status"] == "failed"}
    assert failed == {}
    assert made["verdict"] == "believable"
