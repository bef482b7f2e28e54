"""The records: what the attacks did, which weights were counted and judged, and which images were learned from."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import CW, FAB, FGSM, PGD
from attacks.base import Attack, RandomModule, SampleRandom, Threat
from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.checks import attack_records, seeds_and_data, sparsity_records
from robustbench_sparse.certificate.checks.seeds_and_data import DataFacts, facts_of
from robustbench_sparse.certificate.finding import Finding
from robustbench_sparse.certificate.subject import Context, Subject
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.digits import Digits
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.files import load_weights, read_json, save_weights, write_json
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.judging.judge import Judge, JudgeSettings
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.rebuild import has_recipe
from robustbench_sparse.sparsity.counting import count_sparsity
from robustbench_sparse.sparsity.shrink.proof import same_logits

CHECKS = (*attack_records.CHECKS, *sparsity_records.CHECKS, *seeds_and_data.CHECKS)
LINF = Threat(norm="linf", eps=0.1)
L2 = Threat(norm="l2", eps=0.5)
BUDGET = replace(BUDGETS["quick"], images=64, steps=10, eot=3, draws=10)
CONFIG: dict[str, Any] = {
    "name": "records",
    "data": {"name": "digits"},
    "validation": 100,
    "threat": {"norm": "linf", "eps": 0.1},
    "attacks": {
        "fgsm": "fgsm",
        "pgd": {"name": "pgd", "steps": 5},
        "fab": {"name": "fab", "steps": 5, "targets": 3},
    },
    "evaluation": {"limit": 64, "batch_size": 64, "draws": 3, "precision": "fp32", "compile": "off"},
    "model": {"name": "mlp", "hidden": [32]},
    "train": {"epochs": 2, "batch_size": 64, "optimizer": {"name": "adam", "lr": 0.01}},
    "runs": {
        "robust": {"defenses": [{"name": "pgd_at", "steps": 3}]},
        "random": {
            "model": {"name": "preact_resnet", "depth": 8, "widths": [4, 4, 8]},
            "defenses": [{"name": "enresnet", "members": 1}],
            "train": {"epochs": 1},
        },
    },
}


# Subjects ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> PreparedData:
    return PreparedData(Digits().load(), validation=100, test_limit=64)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    run_benchmark(CONFIG, out=out, device="cpu")
    return out / "records"


def folder_of(benchmark: Path, run: str) -> Path:
    (folder,) = (benchmark / "runs").glob(f"{run}-*")
    return folder


def context_of(folder: Path) -> Context:
    plans = resolve(CONFIG).attacks
    tables = {
        label: pd.read_csv(folder / "outcomes" / f"{label}.csv")
        for label in ("clean", *(p.label for p in plans))
    }
    return Context(
        folder=folder,
        weights=folder / "model.safetensors",
        plans=plans,
        outcomes=tables,
        claims=read_json(folder / "sparsity.json"),
    )


def subject(
    model: nn.Module,
    data: PreparedData,
    context: Context | None = None,
    threat: Threat = LINF,
    n: int = 64,
    seed: int = 0,
) -> Subject:
    x, y = data.gather("test", torch.arange(n))
    index = data.test_indices[:n]
    return Subject(model.eval(), x, y, index, threat, classes=10, seed=seed, budget=BUDGET, context=context)


def row(benchmark: Path, data: PreparedData, run: str = "robust", folder: Path | None = None) -> Subject:
    folder = folder or folder_of(benchmark, run)
    return subject(RunFolder.at(folder).network(1, 8, 10), data, context_of(folder))


def copied(benchmark: Path, tmp_path: Path, run: str = "robust") -> Path:
    """A folder that a test may damage."""
    return Path(shutil.copytree(folder_of(benchmark, run), tmp_path / "run"))


def mlp(seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), activation(), nn.Linear(32, 10))


def trained(
    data: PreparedData, seed: int = 0, threat: Threat | None = None, activation: type[nn.Module] = nn.ReLU
) -> nn.Module:
    """Naturally, or by PGD against a threat."""
    model, generator = mlp(seed, activation), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(4):
        for x, y in data.batches(generator, 64):
            if threat is not None:
                x = PGD(steps=4)(model.eval(), x, y, threat, generator)
            optimizer.zero_grad()
            F.cross_entropy(model.train()(x), y).backward()
            optimizer.step()
    return model.eval()


def judged(model: nn.Module, data: PreparedData, folder: Path, plans: list[AttackPlan]) -> Context:
    judge = Judge(model, data, folder, JudgeSettings(seed=0), "weights/data", Silent())
    tables = {p.label: judge.attack(p) for p in plans}
    return Context(plans=plans, outcomes={"clean": judge.clean(), **tables})


def check(name: str) -> Callable[[Subject], Finding]:
    return next(c.run for c in CHECKS if c.id == name)


# All checks -------------------------------------------------------------------------------------------------


def test_the_checks_are_those_of_the_list_and_say_what_they_are_about() -> None:
    assert [c.id for c in CHECKS] == ["B1", "B2", "B3", "B4", "B5", "S1", "S2", "S3", "S4", "H1", "H2"]
    assert all(c.title and c.source and c.rule and c.meaning and c.advice for c in CHECKS)
    assert {c.id for c in CHECKS if c.refutes} == {"B3", "B5", "S1", "S2", "S4", "H1"}


@pytest.mark.parametrize("run", ["robust", "random"])
def test_an_honest_row_passes_every_check_that_applies(benchmark: Path, data: PreparedData, run: str) -> None:
    s = row(benchmark, data, run)
    s.context = replace(s.context, data=facts_of(data))
    before = {k: v.clone() for k, v in s.model.state_dict().items()}
    found = {c.id: c.run(s) for c in CHECKS}
    assert {k: f.status for k, f in found.items() if f.status == "failed"} == {}
    # S3, S4: no parent and no shrunk network here.
    assert {k for k, f in found.items() if f.status == "skipped"} == {"S3", "S4"}
    assert all(torch.equal(v, before[k]) for k, v in s.model.state_dict().items())
    for finding in found.values():
        json.dumps(finding.record())


def test_a_foreign_network_without_records_is_skipped_with_reasons(data: PreparedData) -> None:
    found = {c.id: c.run(subject(mlp(), data)) for c in CHECKS}
    skipped = {k for k, f in found.items() if f.status == "skipped"}
    assert skipped == {"B1", "B2", "B3", "S1", "S2", "S3", "S4", "H1"}
    assert all(found[k].why for k in skipped)


# B1 ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScaledPGD(PGD):
    """PGD whose perturbation is scaled before it is returned."""

    by: float = 0.031

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        return x + self.by * (super().run(model, x, y, threat, random) - x)


@dataclass(frozen=True, kw_only=True)
class TooFar(Attack):
    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        return (x + 2 * threat.eps).clamp(0, 1)


@pytest.mark.parametrize("threat", [LINF, L2, Threat(norm="l2", eps=1.0)])
@pytest.mark.parametrize("seed", range(3))
def test_honest_attacks_use_their_budget(
    data: PreparedData, tmp_path: Path, threat: Threat, seed: int
) -> None:
    model = trained(data, seed, threat if seed else None, nn.Sigmoid if seed == 2 else nn.ReLU)
    attacks: list[Attack] = [FGSM(), PGD(steps=10), PGD(steps=20, keep="last", loss="margin")]
    plans = [AttackPlan(f"a{i}", "pgd", a, threat) for i, a in enumerate(attacks)]
    plans.append(AttackPlan("fab", "fab", FAB(steps=5), threat))
    s = subject(model, data, judged(model, data, tmp_path, plans), threat)
    found = attack_records.attacks_use_their_budget(s)
    assert found.status == "passed", found
    used = [v for k, v in found.measured.items() if k.endswith(" used") and v is not None]
    assert len(used) >= 1


@pytest.mark.parametrize("threat", [LINF, L2])
def test_a_perturbation_scaled_to_nothing_is_found(
    data: PreparedData, tmp_path: Path, threat: Threat
) -> None:
    model = trained(data)
    plans = [
        AttackPlan("pgd", "pgd", PGD(steps=10), threat),
        AttackPlan("scaled", "x:Scaled", ScaledPGD(), threat),
        AttackPlan("halved", "x:Scaled", ScaledPGD(by=0.5), threat),
    ]
    found = attack_records.attacks_use_their_budget(
        subject(model, data, judged(model, data, tmp_path, plans), threat)
    )
    assert found.status == "failed"
    assert found.measured["idle"] == ["scaled", "halved"]


def test_steps_too_short_to_reach_the_ball_are_found(data: PreparedData, tmp_path: Path) -> None:
    model = trained(data)
    plan = AttackPlan("short", "pgd", PGD(steps=5, step_size=0.001, random_start=False), LINF)
    found = attack_records.attacks_use_their_budget(
        subject(model, data, judged(model, data, tmp_path, [plan]))
    )
    assert found.measured["idle"] == ["short"]


def test_candidates_outside_and_norms_above_eps_are_found(data: PreparedData, tmp_path: Path) -> None:
    model = mlp().eval()
    far = AttackPlan("far", "x:TooFar", TooFar(), LINF)
    context = judged(model, data, tmp_path, [far])
    found = attack_records.attacks_use_their_budget(subject(model, data, context))
    assert found.status == "failed"
    assert found.measured["outside"] == ["far: outside_ball"]
    assert found.measured["outside_ball"] == []  # the judge had projected it
    table = context.outcomes["far"].assign(status="ok")
    table.loc[3, "linf"] = 0.1001
    found = attack_records.attacks_use_their_budget(
        subject(model, data, replace(context, outcomes={"far": table}))
    )
    assert found.status == "failed"
    assert found.measured["outside_ball"] == ["far"]


# B2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [LINF, L2, Threat(norm="l2", eps=math.inf)])
def test_cw_and_fab_find_nearly_the_smallest_perturbation(data: PreparedData, threat: Threat) -> None:
    plans = [
        AttackPlan("cw", "cw", CW(), threat),
        AttackPlan("fab", "fab", FAB(steps=20), threat),
        AttackPlan("next", "fab", FAB(steps=20, target="next"), threat),
    ]
    found = attack_records.smallest_perturbations_are_found(
        subject(mlp(), data, Context(plans=plans), threat)
    )
    assert found.status == "passed", found
    assert all(isinstance(r, float) and r >= 0.99 for r in found.measured.values())


def test_a_weak_minimum_norm_attack_is_found(data: PreparedData) -> None:
    plans = [
        AttackPlan("cw", "cw", CW(), LINF),
        AttackPlan("weak", "cw", CW(steps=3, search_steps=1), LINF),
        AttackPlan("far", "cw", CW(kappa=5.0), LINF),
    ]
    found = attack_records.smallest_perturbations_are_found(subject(mlp(), data, Context(plans=plans)))
    assert found.status == "failed"
    over = [k for k, r in found.measured.items() if isinstance(r, float) and r > attack_records.LONGER]
    assert over == ["weak", "far"]


@pytest.mark.parametrize("threat", [LINF, L2])
def test_the_exact_distance_is_that_of_a_point_just_beyond(data: PreparedData, threat: Threat) -> None:
    model, x, y = attack_records._linear(subject(mlp(), data), threat, 10)
    assert isinstance(model, attack_records.Linear)
    exact = attack_records._distance(model, x, y, threat)
    ball = 1.2 * exact.max().item()
    assert x.min() - ball > 0 or threat.norm == "l2"
    reached = torch.zeros_like(y, dtype=torch.bool)
    w = model.linear.weight.detach()
    for k in range(10):
        apart = w[k] - w[y]
        dual = apart.sign() if threat.norm == "linf" else apart / apart.norm(dim=1, keepdim=True)
        dual = dual.nan_to_num()
        for factor, expected in ((0.999, False), (1.001, True)):
            delta = (factor * exact)[:, None] * dual
            hit = model(x + delta.view_as(x)).argmax(1) != y
            reached |= hit & torch.tensor(expected)
            assert expected or not hit.any()
    assert reached.all()


# B3 ---------------------------------------------------------------------------------------------------------


def test_weights_changed_since_they_were_saved_are_found_by_a_new_process(
    benchmark: Path, data: PreparedData
) -> None:
    s = row(benchmark, data)
    with torch.no_grad():
        for p in s.model.parameters():
            p.mul_(
                torch.where(torch.rand(p.shape, generator=torch.Generator().manual_seed(0)) < 0.5, 0.3, 1.0)
            )
    s = subject(s.model, data, s.context)
    found = attack_records.adversarials_last(s)
    assert found.status == "failed"
    assert found.measured["different"]


def test_a_new_process_that_fails_says_why(benchmark: Path, data: PreparedData, tmp_path: Path) -> None:
    s = row(benchmark, data, folder=copied(benchmark, tmp_path))
    assert s.context.folder is not None
    with (s.context.folder / "model.safetensors").open("ab") as f:
        f.write(b" ")
    found = attack_records.adversarials_last(s)
    assert found.status == "failed"
    assert "the other process failed" in found.why
    assert "model.safetensors" in found.why


def test_a_folder_without_a_recipe_cannot_be_replayed(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"record": {}})
    assert not has_recipe(tmp_path)
    assert not has_recipe(None)


# B4 ---------------------------------------------------------------------------------------------------------


class LastBits(nn.Module):
    """Errs wherever the first pixels are no multiples of 1/255."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * 255
        off = (scaled - scaled.round().detach()).abs().flatten(1).mean(1, keepdim=True)
        out: Tensor = self.model(x.detach())
        return out * (1 - 40 * off)


@pytest.mark.parametrize("seed", range(5))
def test_adversarials_of_honest_networks_survive_8_bits(data: PreparedData, seed: int) -> None:
    threat = (LINF, L2)[seed % 2]
    model = trained(data, seed, threat if seed > 2 else None)
    found = attack_records.adversarials_survive_8_bits(subject(model, data, threat=threat))
    assert found.status == "passed"
    assert found.measured["in the ball but for rounding"] is True


def test_adversarials_that_hang_on_the_last_bits_are_found(data: PreparedData) -> None:
    found = attack_records.adversarials_survive_8_bits(
        subject(LastBits(trained(data)), data, threat=Threat(eps=8 / 255))
    )
    assert found.status == "failed"
    assert found.measured["lost"]


def test_a_radius_of_the_size_of_the_rounding_is_skipped(data: PreparedData) -> None:
    assert (
        attack_records.adversarials_survive_8_bits(
            subject(trained(data), data, threat=Threat(eps=1 / 255))
        ).status
        == "skipped"
    )


# B5 ---------------------------------------------------------------------------------------------------------


def broken_table(table: pd.DataFrame, **changes: Any) -> pd.DataFrame:
    table = table.copy()
    for column, value in changes.items():
        table[column] = table[column].astype(object) if isinstance(value, str) else table[column]
        table.loc[0, column] = value
    return table


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"adv_correct": math.nan}, "without a verdict"), ({"status": "nonfinite"}, "failures with a verdict")],
)
def test_an_outcome_with_a_gap_or_a_failure_that_counts_is_found(
    benchmark: Path, data: PreparedData, changes: dict[str, Any], said: str
) -> None:
    s = row(benchmark, data)
    tables = {**s.context.outcomes, "pgd": broken_table(s.context.outcomes["pgd"], **changes)}
    s.context = replace(s.context, outcomes=tables)
    found = attack_records.failures_are_no_robustness(s)
    assert found.status == "failed"
    assert said in found.why


def test_unknown_missing_and_crashed_attacks_are_found(
    benchmark: Path, data: PreparedData, tmp_path: Path
) -> None:
    s = row(benchmark, data, folder=copied(benchmark, tmp_path))
    context = s.context
    assert context.folder is not None
    unknown = replace(context.plans[0], name="fgms")
    s.context = replace(context, plans=[unknown])
    assert "no attack is called 'fgms'" in attack_records.failures_are_no_robustness(s).why
    s.context = replace(context, outcomes={k: v for k, v in context.outcomes.items() if k != "pgd"})
    assert "pgd: no outcome" in attack_records.failures_are_no_robustness(s).why
    path = context.folder / "outcomes" / "fgsm.json"
    write_json(path, {**read_json(path), "status": "crashed", "reason": "on purpose"})
    s.context = context
    assert "fgsm: crashed: on purpose" in attack_records.failures_are_no_robustness(s).why
    path.unlink()
    assert "fgsm: no fgsm.json" in attack_records.failures_are_no_robustness(s).why


def test_an_outcome_of_other_settings_is_found(benchmark: Path, data: PreparedData) -> None:
    s = row(benchmark, data)
    plans = [replace(p, attack=PGD(steps=50)) if p.label == "pgd" else p for p in s.context.plans]
    s.context = replace(s.context, plans=plans)
    assert "pgd: judged with other settings" in attack_records.failures_are_no_robustness(s).why


def test_a_judge_that_fails_open_is_found(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    class Open(Judge):
        def attack(self, plan: AttackPlan) -> pd.DataFrame:
            super().attack(plan)
            return self.clean().assign(adv_correct=1.0)

    s = subject(mlp(), data)
    assert attack_records.failures_are_no_robustness(s).status == "passed"
    monkeypatch.setattr(attack_records, "Judge", Open)
    found = attack_records.failures_are_no_robustness(s)
    assert found.status == "failed"
    assert "raises" in found.why
    assert "nan" in found.why


# S1, S2 -----------------------------------------------------------------------------------------------------


def test_a_claim_that_the_file_does_not_hold_is_found(benchmark: Path, data: PreparedData) -> None:
    s = row(benchmark, data)
    honest = s.context.claims
    assert honest is not None
    for change in (
        {"weight_sparsity": honest["weight_sparsity"] + 0.2},
        {"channel_sparsity": 50.0},
        {"parameters": honest["parameters"] - 1},
        {"macs": honest["macs"] // 2},
        {"nonzero_parameters": 10},
    ):
        s.context = replace(s.context, claims={**honest, **change})
        found = sparsity_records.sparsity_is_in_the_file(s)
        assert found.status == "failed"
        assert found.measured["wrong"] == list(change)
    s.context = replace(s.context, claims={"weight_sparsity": honest["weight_sparsity"] + 0.05})
    assert sparsity_records.sparsity_is_in_the_file(s).status == "passed"


def test_a_foreign_networks_zeros_are_counted_in_its_file(data: PreparedData, tmp_path: Path) -> None:
    dense, path = mlp(), tmp_path / "w.safetensors"
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned[1].weight[:16] = 0  # type: ignore[union-attr,operator,index]
    claims = count_sparsity(pruned, 1, 8)
    save_weights(path, pruned.state_dict())
    s = subject(pruned, data, Context(weights=path, claims=claims))
    assert (
        sparsity_records.sparsity_is_in_the_file(s).status
        == sparsity_records.counted_network_was_attacked(s).status
        == "passed"
    )
    save_weights(path, dense.state_dict())  # the pruned one was never saved
    assert (
        sparsity_records.sparsity_is_in_the_file(s).status
        == sparsity_records.counted_network_was_attacked(s).status
        == "failed"
    )
    save_weights(path, {"other": torch.zeros(3)})
    assert sparsity_records.sparsity_is_in_the_file(s).status == "failed"
    assert "another architecture" in sparsity_records.sparsity_is_in_the_file(s).why


def test_a_dense_network_judged_in_place_of_the_counted_one_is_found(
    benchmark: Path, data: PreparedData, tmp_path: Path
) -> None:
    s = row(benchmark, data, folder=copied(benchmark, tmp_path))
    assert s.context.folder is not None
    path = s.context.folder / "model.safetensors"
    weights = load_weights(path)
    name = next(k for k, v in weights.items() if v.ndim == 2)
    weights[name][0, 0] = 0
    save_weights(path, weights)
    found = sparsity_records.counted_network_was_attacked(s)
    assert found.status == "failed"
    assert found.measured["different tensors"] == [name]
    assert found.measured["outcomes of other weights"] == ["clean", "fgsm", "pgd", "fab"]


# S3, S4 -----------------------------------------------------------------------------------------------------


def test_flips_against_the_parent_are_counted_and_never_called_a_gain_by_chance(data: PreparedData) -> None:
    natural, robust = trained(data), trained(data, threat=LINF)
    better = sparsity_records.pruning_turns_images(subject(robust, data, Context(parent=("dense", natural))))
    assert better.status == "reported"
    assert better.measured["p"] < 0.05  # type: ignore[operator]
    assert better.why == "better than dense"
    assert better.measured["won_count"] > better.measured["lost_count"]  # type: ignore[operator]
    assert len(better.measured["won"]) <= 20  # type: ignore[arg-type]
    worse = sparsity_records.pruning_turns_images(subject(natural, data, Context(parent=("dense", robust))))
    assert worse.why == "worse than dense"
    assert worse.measured["lost"] == better.measured["won"]
    same = sparsity_records.pruning_turns_images(
        subject(robust, data, Context(parent=("dense", copy.deepcopy(robust))))
    )
    assert same.measured["p"] == 1.0
    assert same.why.startswith("neither better nor worse")


def test_a_shrunk_network_must_give_the_masked_ones_logits(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = trained(data)
    assert isinstance(masked, nn.Sequential)
    first, last = masked[1], masked[3]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        first.weight[:8] = 0
        last.weight[:, :4] = 0
    shrunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 28), nn.ReLU(), nn.Linear(28, 10)).eval()
    with torch.no_grad():
        for to, source in zip(
            shrunk.parameters(),
            (first.weight[4:], first.bias[4:], last.weight[:, 4:], last.bias),
            strict=True,
        ):
            to.copy_(source)
    monkeypatch.setattr(sparsity_records, "_shrunk", lambda s: shrunk)
    assert sparsity_records.dead_channels_change_nothing(subject(masked, data)).status == "passed"
    with torch.no_grad():
        first_bias = shrunk[1].bias
        assert isinstance(first_bias, Tensor)
        first_bias[0] += 1  # what a dead neuron's bias still adds
    assert sparsity_records.dead_channels_change_nothing(subject(masked, data)).status == "failed"


class Noisy(RandomModule):
    def forward(self, x: Tensor) -> Tensor:
        return x + 5 * self.draw(x)


def test_logits_are_compared_without_noise_and_what_is_not_finite_is_far_apart(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = data.gather("test", torch.arange(8))[0]
    plain = mlp().eval()
    assert same_logits(nn.Sequential(plain, Noisy()).eval(), plain, x)[0] == 0
    broken = copy.deepcopy(plain)
    with torch.no_grad():
        next(broken.parameters()).fill_(math.nan)
    assert same_logits(plain, broken, x)[0] == math.inf
    monkeypatch.setattr(sparsity_records, "_shrunk", lambda s: broken)
    assert sparsity_records.dead_channels_change_nothing(subject(plain, data)).status == "failed"


# H1, H2 -----------------------------------------------------------------------------------------------------


def pictures(train: Tensor, test: Tensor) -> PreparedData:
    def labels(x: Tensor) -> Tensor:
        return torch.arange(len(x)) % 2

    toy = Dataset(
        name="toy",
        label="toy",
        train_x=train,
        train_y=labels(train),
        test_x=test,
        test_y=labels(test),
        classes=("a", "b"),
    )
    return PreparedData(toy, validation=20)


def test_equal_images_have_equal_hashes_in_all_parts_and_one_bit_makes_another() -> None:
    x = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    test = x.clone()
    test[0, 2, 7, 7] ^= 1
    d = pictures(x, test)
    by_position = dict(zip(d.indices["train"].tolist(), d.image_hashes("train"), strict=True))
    by_position |= dict(zip(d.indices["val"].tolist(), d.image_hashes("val"), strict=True))
    hashes = d.image_hashes("test")
    assert hashes.dtype == np.uint64
    assert [by_position[i] == hashes[i] for i in range(60)] == [False] + [True] * 59


def test_images_in_two_parts_are_found(data: PreparedData) -> None:
    s, facts = subject(mlp(), data), facts_of(data)
    s.context = Context(data=facts)
    assert seeds_and_data.judged_images_are_new(s).status == "passed"
    s.context = Context(data=replace(facts, val=np.append(facts.val, facts.train[5])))
    found = seeds_and_data.judged_images_are_new(s)
    assert found.status == "failed"
    assert found.measured["trained and validated on"] == [int(facts.train[5])]


@pytest.mark.parametrize(("copies", "status"), [(0, "passed"), (1, "passed"), (10, "failed")])
def test_test_images_among_the_training_images_are_counted(
    data: PreparedData, copies: int, status: str
) -> None:
    facts = facts_of(data)
    train = facts.train_hashes.copy()
    train[:copies] = facts.test_hashes[:copies]
    s = subject(mlp(), data, Context(data=replace(facts, train_hashes=train)))
    found = seeds_and_data.judged_images_are_new(s)
    assert found.status == status
    assert found.measured["test images seen in training"] == copies
    assert found.measured["seen"] == facts.test[:copies].tolist()


def test_a_checkpoint_chosen_without_validation_images_is_found(
    benchmark: Path, data: PreparedData, tmp_path: Path
) -> None:
    folder = copied(benchmark, tmp_path)
    facts: DataFacts = facts_of(data)
    s = subject(mlp(), data, Context(folder=folder, data=facts))
    assert seeds_and_data.judged_images_are_new(s).status == "passed"
    about = read_json(folder / "run.json")
    about["record"]["validation"] = 0
    write_json(folder / "run.json", about)
    assert seeds_and_data.judged_images_are_new(s).status == "failed"
    for stage in about["record"]["stages"]:
        stage["selection"] = "last"
    write_json(folder / "run.json", about)
    assert seeds_and_data.judged_images_are_new(s).status == "passed"


def test_seeds_and_interval_are_reported(data: PreparedData) -> None:
    one = seeds_and_data.seeds_and_interval(subject(trained(data), data, Context(seeds=1)))
    assert one.status == "reported"
    assert "fewer than 3 seeds" in one.why
    low, acc, high = (one.measured[k] for k in ("low", "acc", "high"))
    assert 0 <= low <= acc <= high <= 1  # type: ignore[operator]
    assert high - low > 0.05  # type: ignore[operator]
    assert seeds_and_data.seeds_and_interval(subject(trained(data), data, Context(seeds=3))).why == ""
