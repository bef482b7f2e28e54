"""Suites: they run on two classes, cost what they say, and a benchmark file can name one."""

from __future__ import annotations

import copy
import typing
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from attacks import (
    APGD,
    ATTACKS,
    CW,
    FGSM,
    PGD,
    Geometric,
    NAttack,
    RandomSearch,
    SampleRandom,
    Square,
    Threat,
)
from robustbench_sparse.cli import main as cli
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.schema import BenchmarkConfig
from robustbench_sparse.config.suites import EOT, PURPOSE, SUITES, attacks_of, cost_of
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.judging.judge import PassCounter

RAW: dict[str, Any] = {
    "name": "t",
    "data": "digits",
    "train": {"epochs": 1, "selection": "last"},
    "runs": {"a": {"model": "mlp"}},
}


def buildable(suite: str) -> str:
    """The suite; skipped, visibly, where an attack of it is not in the table of contents."""
    missing = {entry["name"] for entry in SUITES[suite].values()} - set(ATTACKS)
    if missing:
        pytest.skip(f"the suite {suite} needs {', '.join(sorted(missing))}")
    return suite


class Held(nn.Module):
    """Two classes, the first one everywhere: no attack succeeds, so that each takes all its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        tilt = 1e-3 * x.flatten(1) @ self.w
        return torch.stack((10 + tilt, -tilt), 1)


@pytest.mark.parametrize("suite", ["quick", "standard"])
def test_a_suite_takes_no_more_than_it_says_and_two_classes_are_enough(suite: str) -> None:
    attacks, x = attacks_of(suite).values(), torch.full((2, 1, 4, 4), 0.5)
    counter = PassCounter(Held()).eval()
    for attack in attacks:
        attack(
            counter, x, torch.zeros(2, dtype=torch.long), Threat(), SampleRandom.for_images(0, "a", [0, 1])
        )
    gradients, queries = cost_of(attacks)
    assert counter.backwards == 2 * gradients
    # Beyond the gradient passes: Square's queries, and what shows a last point to the network.
    extra = counter.forwards / 2 - gradients
    assert 0.9 * queries <= extra <= queries + 3 * len(attacks)


def test_gradients_are_averaged_on_random_networks_and_cost_nothing_elsewhere() -> None:
    for suite in SUITES:
        for label, attack in attacks_of(buildable(suite)).items():
            assert attack.black_box or attack.eot == EOT, (suite, label)  # type: ignore[attr-defined]
    assert cost_of([FGSM(eot=20), PGD(steps=20, restarts=2, eot=20)]) == (41, 0)
    assert cost_of([APGD(loss="dlr_targeted", targets=3, steps=10, eot=4)]) == (30, 0)
    assert cost_of([CW(steps=10, search_steps=3)]) == (30, 0)
    assert cost_of([]) == (0, 0)


def test_a_black_box_costs_its_queries() -> None:
    attacks = [Square(queries=300, restarts=2, eot=3), RandomSearch(queries=70), NAttack(samples=4, steps=5)]
    assert [a.passes for a in (*attacks, Geometric())] == [0, 0, 0, 0]
    assert cost_of(attacks) == (0, 300 + 70 + 25)
    assert [a.cost for a in attacks] == [300, 70, 25]
    assert Geometric().cost == Geometric().queries == 775


def test_work_is_counted_in_forward_passes() -> None:
    assert FGSM(eot=20).cost == 2
    assert PGD(steps=50, restarts=3, eot=20).cost == 300
    if "autoattack" in ATTACKS:
        whole = ATTACKS["autoattack"]()
        assert whole.cost == 2 * whole.passes + 5000
        assert cost_of([whole]) == (whole.passes, 5000)


def test_each_suite_costs_more_than_the_one_before() -> None:
    assert tuple(SUITES) == typing.get_args(
        typing.get_args(BenchmarkConfig.model_fields["suite"].annotation)[0]
    )
    assert tuple(PURPOSE) == tuple(SUITES)
    work = [2 * g + q for g, q in (cost_of(attacks_of(buildable(s)).values()) for s in SUITES)]
    assert work == sorted(work)
    assert cost_of(attacks_of("quick").values()) == (21, 0)
    assert cost_of(attacks_of("standard").values()) == (421, 500)


def test_a_benchmark_file_names_a_suite_and_its_own_attacks_replace_the_suites() -> None:
    plan = resolve({**RAW, "suite": "standard"})
    assert [a.label for a in plan.attacks] == list(SUITES["standard"])
    own = {"mine": "fgsm", "ifgsm20": {"name": "ifgsm", "steps": 3}}
    plan = resolve({**RAW, "suite": "standard", "attacks": own})
    assert [a.label for a in plan.attacks] == [*SUITES["standard"], "mine"]
    by_label = {a.label: a.attack for a in plan.attacks}
    assert by_label["ifgsm20"].steps == 3  # type: ignore[attr-defined]
    assert by_label["pgd50x3"].restarts == 3  # type: ignore[attr-defined]
    assert [a.label for a in resolve({**RAW, "attacks": own}).attacks] == ["mine", "ifgsm20"]
    assert resolve(RAW, changes=["suite=quick"]).attacks[1].attack.steps == 20  # type: ignore[attr-defined]


def test_a_suite_is_published_and_checked_like_any_attack() -> None:
    values = {"a": {"apgd100": 40.0}}
    plan = resolve({**RAW, "suite": "standard", "published": {"values": values}})
    assert plan.published == values
    with pytest.raises(UserError, match=r"suite: expected 'quick', 'standard' or 'full', got 'strong'"):
        resolve({**RAW, "suite": "strong"})
    with pytest.raises(UserError, match=r"suite\.fgsm: eps: expected a finite"):
        resolve({**RAW, "suite": "quick", "threat": {"eps": float("inf")}})


def test_reading_a_config_leaves_the_suites_as_they_are() -> None:
    before = copy.deepcopy(SUITES)
    resolve({**RAW, "suite": "standard", "attacks": {"fgsm": {"name": "fgsm", "threat": {"eps": 0.1}}}})
    assert before == SUITES


def test_suites_are_listed_with_settings_and_cost() -> None:
    for suite in SUITES:
        buildable(suite)
    result = CliRunner().invoke(cli.app, ["list", "suites"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines if not line.startswith(" ")][:3] == list(SUITES)
    assert "    pgd20_margin: pgd, steps: 20, loss: margin, eot: 20" in lines
    assert "    at most 421 gradient passes and 500 queries per image" in lines
    assert sum(line.startswith("    at most ") for line in lines) == 3
    assert max(map(len, lines)) <= 100
