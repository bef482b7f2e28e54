"""Attacks of the library torchattacks: the images it gives itself, its settings checked, no traces left behind."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor, nn

from attacks import Threat
from attacks.from_torchattacks import GIVEN, NORMS, REFUSED, FromTorchattacks, seed_of
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.config.plugins import settings_of
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.evaluation import evaluate
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.judging.judge import Judge, JudgeSettings, PassCounter
from tests.helpers.attack_models import Shaky, digits_net, streams

EPS = {"linf": 0.1, "l2": 1.0}
QUICK: dict[str, dict[str, Any]] = {
    "AutoAttack": {"version": "rand", "n_classes": 5},
    "APGDT": {"n_classes": 4},
    "DeepFool": {"steps": 5},
    "SPSA": {"nb_sample": 8, "nb_iter": 2},
    "Square": {"n_queries": 20},
}
EVERY = [(name, norm) for name, norms in NORMS.items() for norm in norms]


def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """The digits' network and images in float32, as the judge has them."""
    net, x, y = digits_net()
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    single.load_state_dict({k: v.float() for k, v in net.state_dict().items()})
    return single, x.float(), y


def colours() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network in channels-last layout, colour images, and what it says of them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.Flatten()
        )
        net = nn.Sequential(net, nn.Linear(4 * 7 * 7, 10)).eval().to(memory_format=torch.channels_last)
        x = torch.rand(6, 3, 16, 16).to(memory_format=torch.channels_last)
    return net, x, net(x).argmax(1)


def made(name: str, target: Any = "none", **settings: Any) -> FromTorchattacks:
    return FromTorchattacks(attack=name, target=target, settings=settings)


def threat(norm: Any = "linf") -> Threat:
    return Threat(norm=norm, eps=EPS[norm])


def directly(attack: Any, x: Tensor, y: Tensor, seed: int) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out: Tensor = attack(x, y)
        return out


# The library's own images ---------------------------------------------------------------------------------


def test_the_librarys_own_images_bit_for_bit() -> None:
    net, x, y = digits()
    seed = seed_of(streams(len(x)))
    pairs = {
        "FGSM": (torchattacks.FGSM(net, eps=0.1), made("FGSM"), "linf"),
        "PGD": (
            torchattacks.PGD(net, eps=0.1, steps=5, alpha=0.03),
            made("PGD", steps=5, alpha=0.03),
            "linf",
        ),
        "PGDL2": (torchattacks.PGDL2(net, eps=1.0, steps=5), made("PGDL2", steps=5), "l2"),
        "CW": (torchattacks.CW(net, c=5, steps=20), made("CW", c=5, steps=20), "l2"),
        "Square": (
            torchattacks.Square(net, norm="L2", eps=1.0, n_queries=30, seed=seed),
            made("Square", n_queries=30),
            "l2",
        ),
        "APGD": (torchattacks.APGD(net, eps=0.1, loss="dlr", seed=seed), made("APGD", loss="dlr"), "linf"),
    }
    for name, (theirs, ours, norm) in pairs.items():
        expected = directly(theirs, x, y, seed)
        assert (expected - x).abs().max() > 0.01, name
        assert torch.equal(ours(net, x, y, threat(norm), streams(len(x))), expected), name


@pytest.mark.parametrize(("name", "norm"), EVERY)
def test_every_attack_runs_and_leaves_no_trace(name: str, norm: str) -> None:
    """Repeatable; inside the ball where it says so; generators, gradients and modes as they were."""
    net, x, y = colours()
    net[0][1].train()  # a part in another mode than the whole stays in it
    marks = [p.detach().clone() for p in net.parameters()]
    for p, mark in zip(net.parameters(), marks, strict=True):
        p.grad = mark
    attack = made(name, **QUICK.get(name, {}))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    first = attack(net, x, y, threat(norm), streams(len(x)))
    assert torch.equal(first, attack(net, x, y, threat(norm), streams(len(x))))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # type: ignore[index]
    assert before[2] == random.getstate()
    assert all(p.grad is mark for p, mark in zip(net.parameters(), marks, strict=True))
    assert all(torch.equal(p, mark) for p, mark in zip(net.parameters(), marks, strict=True))
    assert all(p.requires_grad for p in net.parameters())
    assert not net.training
    assert net[0][1].training
    assert first.shape == x.shape
    assert 0 <= first.min() <= first.max() <= 1
    if attack.bounded:
        assert (threat(norm).size(first - x) <= EPS[norm] * (1 + 1e-5) + 1e-6).all()
    assert attack.cost > 0


def test_other_streams_give_other_random_starts() -> None:
    net, x, y = digits()
    one, other = (made("PGD")(net, x, y, threat(), streams(len(x), seed)) for seed in (0, 1))
    assert not torch.equal(one, other)


def test_a_network_without_parameters_and_the_judges_counter(capsys: pytest.CaptureFixture[str]) -> None:
    class Means(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack((x[:, 0, :4].mean((1, 2)), x[:, 0, 4:].mean((1, 2))), 1)

    _, x, _ = digits()
    counter = PassCounter(Means()).eval()
    with torch.no_grad():
        y = counter.model(x).argmax(1)
    x_adv = made("PGD", steps=4)(counter, x, y, threat(), streams(len(x)))
    assert (counter.model(x_adv).argmax(1) != y).any()
    assert (counter.forwards, counter.backwards) == (4 * len(x), 4 * len(x))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["EOTPGD", "DeepFool", "APGD", "PGDRS"])
def test_a_random_network_is_attacked_repeatably(name: str) -> None:
    """Though the library sends single images, some of them, or copies."""
    net, x, y = digits()
    shaky, norm = Shaky(net).eval(), NORMS[name][-1]
    attack = made(name, **QUICK.get(name, {}))
    one, same, other = (attack(shaky, x[:5], y[:5], threat(norm), streams(5, s)) for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert shaky.noise_source is None


def test_what_the_library_raises_is_raised() -> None:
    net, x, y = digits()
    with pytest.raises(RuntimeError):
        made("TIFGSM")(net, x, y, threat(), streams(len(x)))  # made for three channels


def test_no_more_classes_than_the_network_has() -> None:
    net, x, y = digits()
    attack = made("APGDT", n_classes=100)
    small = made("APGDT", n_classes=10)
    args = net, x[:20], y[:20], threat()
    assert torch.equal(attack(*args, streams(20)), small(*args, streams(20)))


# Targets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FGSM", "PGD", "SPSA", "Jitter", "UPGD", "PGDRS", "CW"])
def test_a_class_to_reach_is_approached(name: str) -> None:
    net, x, y = digits()
    settings = {"SPSA": {"nb_iter": 5}, "UPGD": {"loss": "dlr"}, "CW": {"c": 10}, "PGDRS": {"noise_sd": 0.1}}
    attack = made(name, target="next", **settings.get(name, {}))
    x_adv = attack(net, x, y, threat(NORMS[name][0]), streams(len(x)))
    goal = (y + 1) % 10

    def lead(images: Tensor) -> Tensor:
        z = net(images)
        return (z.gather(1, goal[:, None]) - z.gather(1, y[:, None]))[:, 0]

    moved = (x_adv - x).flatten(1).abs().amax(1) > 0
    assert moved.any()
    assert (lead(x_adv) > lead(x))[moved].double().mean() > 0.9


def test_the_class_to_reach_may_be_given_where_no_true_label_is_needed() -> None:
    net, x, y = digits()
    by_rule = made("PGD", target="next")(net, x, y, threat(), streams(len(x)))
    given = made("PGD", target="given")(net, x, (y + 1) % 10, threat(), streams(len(x)))
    assert torch.equal(by_rule, given)


@pytest.mark.parametrize(
    ("name", "target"), [("APGD", "next"), ("DeepFool", "random"), ("FAB", "next"), ("UPGD", "given")]
)
def test_targets_an_attack_cannot_have(name: str, target: str) -> None:
    with pytest.raises(ValueError, match=f"^target: expected .*torchattacks.{name} "):
        made(name, target=target)


# Settings -------------------------------------------------------------------------------------------------


def test_every_attack_of_the_library_is_known_or_refused_with_a_reason() -> None:
    assert set(torchattacks.__all__) == {*NORMS, *REFUSED}


def test_the_record_holds_every_default() -> None:
    record = settings_of(made("CW", c=2))
    assert record == {
        "target": "none",
        "attack": "CW",
        "settings": {"c": 2.0, "kappa": 0.0, "steps": 50, "lr": 0.01},
        "library": torchattacks.__version__,
    }
    assert settings_of(made("CW", c=2.0, steps=50)) == record
    assert json.loads(json.dumps(record)) == record
    for name in NORMS:
        assert not set(made(name).settings) & set(GIVEN)
    with pytest.raises(ValueError, match=r"^library: expected "):
        FromTorchattacks(attack="PGD", library="0.1")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("PGDD", {}, "attack: unknown attack 'PGDD' (did you mean 'PGD'"),
        ("pgd", {}, "attack: unknown attack 'pgd' (did you mean 'PGD'"),
        ("Attack", {}, "attack: unknown attack 'Attack'"),
        ("OnePixel", {}, "attack: torchattacks.OnePixel fits no threat here: it bounds the number of pixels"),
        ("EADL1", {}, "attack: torchattacks.EADL1 fits no threat here: it minimises l1"),
        ("VANILA", {}, "attack: torchattacks.VANILA fits no threat here: it does nothing"),
        (
            "PGD",
            {"stepz": 3},
            "stepz: unknown setting of torchattacks.PGD (did you mean 'steps'?); there are: alpha,",
        ),
        ("PGD", {"model": 3}, "model: unknown setting"),
        ("PGD", {"eps": 0.1}, "eps: not a setting: the threat gives it"),
        ("PIFGSM", {"max_epsilon": 0.1}, "max_epsilon: not a setting: the threat gives it: eps"),
        ("APGD", {"norm": "L2"}, "norm: not a setting: the threat gives it"),
        ("Square", {"seed": 3}, "seed: not a setting: the images' random streams give it"),
        ("Square", {"verbose": True}, "verbose: not a setting: nothing is printed"),
        ("PGD", {"steps": 2.5}, "steps: expected a whole number, got 2.5"),
        ("PGD", {"steps": True}, "steps: expected a whole number, got True"),
        ("PGD", {"steps": "3"}, "steps: expected a whole number, got '3'"),
        ("PGD", {"steps": 0}, "steps: expected an integer >= 1, got 0"),
        ("PGD", {"alpha": True}, "alpha: expected a finite number, got True"),
        ("PGD", {"alpha": float("nan")}, "alpha: expected a finite number, got nan"),
        ("PGD", {"alpha": 0}, "alpha: expected a number > 0, got 0"),
        ("PGD", {"random_start": 1}, "random_start: expected true or false, got 1"),
        ("CW", {"c": -1}, "c: expected a number >= 0, got -1"),
        ("APGD", {"loss": "margin"}, "loss: expected one of ce, dlr, got 'margin'"),
        ("APGD", {"loss": 5}, "loss: expected a text, got 5"),
        ("AutoAttack", {"version": "fast"}, "version: expected one of standard, plus, rand, got 'fast'"),
    ],
)
def test_settings_that_do_not_fit(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as e:
        made(name, **settings)
    assert str(e.value).startswith(message)
    assert "\n" not in str(e.value)


def test_norms_and_radii_an_attack_cannot_work_in() -> None:
    net, x, y = digits()
    with pytest.raises(ValueError, match=r"^threat.norm: expected 'linf', in which torchattacks.PGD works"):
        made("PGD")(net, x, y, threat("l2"))
    with pytest.raises(ValueError, match=r"^threat.norm: expected 'l2', in which torchattacks.CW works"):
        made("CW")(net, x, y, threat())
    with pytest.raises(ValueError, match=r"^threat.eps: expected a finite radius"):
        made("PGD").check_threat(Threat(eps=float("inf")))
    made("CW").check_threat(Threat(norm="l2", eps=float("inf")))


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match=r"pip install 'robustbench_sparse\[torchattacks\]'$"):
        made("PGD")
    with pytest.raises(UserError, match=r"^config: attacks.ta.name: .*: pip install 'robustbench_sparse"):
        benchmark("torchattacks:PGD")


# From a config to outcomes --------------------------------------------------------------------------------


def benchmark(entry: Any) -> Plan:
    return resolve(
        {
            "name": "small",
            "data": "digits",
            "validation": 100,
            "threat": {"eps": 0.1},
            "attacks": {"ta": entry},
            "model": "lenet",
            "train": {"epochs": 1},
            "runs": {"a": {}},
        }
    )


def test_an_attack_in_a_config() -> None:
    (plan,) = benchmark({"name": "torchattacks:PGD", "steps": 3, "target": "next"}).attacks
    assert plan.attack == made("PGD", target="next", steps=3)
    record = plan.record()
    assert record["name"] == "torchattacks:PGD"
    assert record["settings"]["steps"] == 3
    assert record["threat"] == {"norm": "linf", "eps": 0.1}
    assert benchmark("torchattacks:FGSM").attacks[0].attack == made("FGSM")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("torchattacks:PDG", "attacks.ta.name: unknown attack 'PDG' (did you mean 'PGD'"),
        ("torchattacks:", "attacks.ta.name: unknown attack ''"),
        (
            {"name": "torchattacks:PGD", "stepz": 3},
            "attacks.ta.stepz: unknown setting of torchattacks.PGD (did",
        ),
        ({"name": "torchattacks:PGD", "attack": 3}, "attacks.ta.attack: unknown setting of torchattacks.PGD"),
        ({"name": "torchattacks:PGD", "steps": "3"}, "attacks.ta.steps: expected a whole number, got '3'"),
        ({"name": "torchattacks:PGD", "eps": 0.1}, "attacks.ta.eps: not a setting: the threat gives it"),
        ({"name": "torchattacks:PGD", "target": "nxt"}, "attacks.ta.target: expected 'none',"),
        (
            {"name": "torchattacks:APGD", "target": "next"},
            "attacks.ta.target: expected 'none': torchattacks.",
        ),
        ("torchattacks:CW", "attacks.ta: threat.norm: expected 'l2', in which torchattacks.CW works, got"),
    ],
)
def test_a_config_that_does_not_fit_names_the_key(entry: Any, message: str) -> None:
    with pytest.raises(UserError) as e:
        benchmark(entry)
    assert str(e.value).startswith(f"config: {message}")
    assert "\n" not in str(e.value)


def test_judged_on_digits_and_the_batch_size_belongs_to_the_outcome(tmp_path: Path) -> None:
    plan = benchmark({"name": "torchattacks:PGD", "steps": 3})
    data = PreparedData(load_dataset(plan.dataset, None), validation=0, test_limit=60)
    net, _, _ = digits()

    def judge(batch_size: int) -> Judge:
        return Judge(net, data, tmp_path, JudgeSettings(seed=0, batch_size=batch_size), "net", Silent())

    table = judge(30).attack(plan.attacks[0])
    meta = read_json(tmp_path / "outcomes" / "ta.json")
    assert (meta["status"], meta["flags"], meta["minimum_norm"]) == ("ok", {}, False)
    assert meta["key"]["batch_size"] == 30
    assert table["adv_correct"].mean() < table["clean_correct"].mean()
    assert judge(30).all_done(plan.attacks)
    assert not judge(20).all_done(plan.attacks)


def test_evaluate_by_name() -> None:
    net, _, _ = digits()
    board = evaluate(
        net, dataset="digits", attacks=["torchattacks:FGSM", "fgsm"], eps=0.1, limit=60, device="cpu"
    )
    assert 0 < board["torchattacks_FGSM"][0] < board["clean"][0]
    assert board["torchattacks_FGSM"][0] == board["fgsm"][0]
