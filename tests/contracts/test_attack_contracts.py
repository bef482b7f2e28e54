"""What every attack of the table of contents must do."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math

import pytest
import torch
from torch import Tensor, nn

from attacks import ATTACKS, Attack, SampleRandom, Threat
from attacks.base import RandomModule
from attacks.transfer import Transfer

KEYS = sorted(key for key, attack in ATTACKS.items() if "classify" in attack.tasks)
# Attacks with a set of their own are no weaker for leaving a network standing in a ball.
STRONG = [key for key in KEYS if not ATTACKS[key].weak and not ATTACKS[key].own_set]
THREATS = [Threat(norm="linf", eps=0.15), Threat(norm="l2", eps=0.6)]
CLASSES, IMAGES = 4, 12

# Cheaper settings where the defaults would take long.
SMALL: dict[str, dict[str, object]] = {
    "autoattack": {"steps": 15, "targets": 2, "queries": 100},
    "cw": {"steps": 40, "search_steps": 4},
    "fab": {"steps": 20},
    "geometric": {"angles": 5, "shifts": 3},
    "nattack": {"samples": 30, "steps": 40, "learning_rate": 0.1},
    "random_search": {"queries": 200},
    "smoothed": {"steps": 20},
    "square": {"queries": 400},
}
# Settings that take another path through an attack.
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("fgsm", {"loss": "margin", "target": "least_likely"}),
    ("ifgsm", {"momentum": 0.9, "target": "next"}),
    ("ifgsm", {"keep": "last", "step_size": 0.05}),
    ("ifgsm", {"early_stop": True, "momentum": 0.5}),
    ("pgd", {"restarts": 3, "loss": "margin"}),
    ("pgd", {"restarts": 3, "early_stop": True}),
    ("pgd", {"keep": "last", "target": "random"}),
    ("pgd", {"random_start": False}),
    ("cw", {"early_abort": True, "kappa": 0.1}),
    ("cw", {"target": "runner_up"}),
    ("cw_published", {"target": "least_likely"}),
    ("apgd", {"loss": "dlr_targeted", "targets": 2, "steps": 20}),
    ("apgd", {"loss": "dlr", "restarts": 2, "steps": 20}),
    ("apgd", {"loss": "pma", "steps": 20}),
    ("smoothed", {"loss": "pma", "restarts": 2}),
    ("smoothed", {"loss": "dlr", "target": "next"}),
    ("fab", {"restarts": 2, "targets": 2}),
    ("fab", {"target": "runner_up"}),
    ("fab", {"within": True}),
    ("autoattack", {"queries": 0, "restarts": 2}),
    ("autoattack", {"target": "next", "steps": 5}),
    ("dct", {"frequencies": 3}),
    ("dct", {"random_start": False, "loss": "margin", "target": "runner_up"}),
    ("geometric", {"search": "random", "border": "reflection"}),
    ("geometric", {"border": "border", "target": "next"}),
    ("square", {"p_init": None, "restarts": 3, "target": "runner_up"}),
    ("nattack", {"target": "least_likely", "samples": 1100, "steps": 2}),
    ("random_search", {"corners": 0.0, "target": "random"}),
]
ALL = [pytest.param(key, {}, id=key) for key in KEYS] + [
    pytest.param(key, extra, id="-".join([key, *(f"{k}={v}" for k, v in extra.items())]))
    for key, extra in VARIANTS
]
INVALID: list[tuple[str, dict[str, object]]] = [
    *[(key, {"target": "runnerup"}) for key in KEYS],
    ("fgsm", {"loss": "mse"}),
    ("fgsm", {"eot": 0}),
    ("ifgsm", {"steps": 0}),
    ("ifgsm", {"step_size": 0.0}),
    ("ifgsm", {"step_size": math.nan}),
    ("ifgsm", {"loss": "cross_entropy"}),
    ("ifgsm", {"eot": 0}),
    ("ifgsm", {"momentum": -0.1}),
    ("ifgsm", {"keep": "first"}),
    ("ifgsm", {"early_stop": True, "keep": "last"}),
    ("pgd", {"restarts": 0}),
    ("pgd", {"restarts": 2, "random_start": False}),
    ("pgd", {"restarts": 2, "keep": "last"}),
    ("pgd_clip", {"steps": 0}),
    ("pgd_clip", {"step_size": 0.0}),
    ("pgd_clip", {"target": "next"}),
    ("cw", {"steps": 0}),
    ("cw", {"search_steps": 0}),
    ("cw", {"initial_c": 0.0}),
    ("cw", {"learning_rate": 0.0}),
    ("cw", {"kappa": -1.0}),
    ("cw", {"eot": 0}),
    ("cw_published", {"target": "none"}),
    ("cw_published", {"target": "given"}),
    ("cw_published", {"steps": 0}),
    ("cw_published", {"learning_rate": -1.0}),
    ("cw_published", {"c": 0.0}),
    ("cw_published", {"eot": 0}),
    ("noise", {"sigma": 0.0}),
    ("noise", {"sigma": math.inf}),
    ("noise", {"target": "next"}),
    ("apgd", {"steps": 0}),
    ("apgd", {"restarts": 0}),
    ("apgd", {"loss": "mse"}),
    ("apgd", {"eot": 0}),
    ("apgd", {"targets": 0}),
    ("autoattack", {"steps": 0}),
    ("autoattack", {"targets": 0}),
    ("autoattack", {"restarts": 0}),
    ("autoattack", {"queries": 3}),
    ("autoattack", {"eot": 0}),
    ("fab", {"steps": 0}),
    ("fab", {"restarts": 0}),
    ("fab", {"targets": 0}),
    ("fab", {"alpha_max": 1.1}),
    ("fab", {"eta": 0.9}),
    ("fab", {"beta": 1.0}),
    ("dct", {"frequencies": 0}),
    ("geometric", {"border": "mirror"}),
    ("square", {"queries": 3}),
    ("square", {"p_init": 1.5}),
    ("square", {"restarts": 0}),
    ("smoothed", {"steps": 0}),
    ("smoothed", {"restarts": 0}),
    ("smoothed", {"loss": "dlr_targeted"}),
    ("smoothed", {"eot": 0}),
    ("smoothed", {"targets": -1}),
    ("transfer", {"source": ""}),
    ("transfer", {"restarts": 0}),
    ("transfer", {"momentum": -1.0}),
    ("nattack", {"samples": 1}),
    ("nattack", {"steps": 0}),
    ("nattack", {"sigma": 0.0}),
    ("nattack", {"learning_rate": math.nan}),
    ("random_search", {"queries": 2}),
    ("random_search", {"corners": 1.5}),
]


def settings_of(attack: Attack) -> dict[str, object]:
    return dataclasses.asdict(attack)


def make(key: str, **extra: object) -> Attack:
    return ATTACKS[key](**{**SMALL.get(key, {}), **extra})  # type: ignore[arg-type]


class Noisy(RandomModule):
    """Adds noise to the features."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.05 * self.draw(x)


def network(*, noisy: bool = False, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small smooth network. In float64 the sums of a batch and of a single image agree far below 1e-6."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return (
            nn.Sequential(
                nn.Conv2d(1, 4, 3),
                Noisy() if noisy else nn.Identity(),
                nn.Tanh(),
                nn.Flatten(),
                nn.Linear(64, CLASSES),
            )
            .to(dtype)
            .eval()
        )


def linear() -> nn.Module:
    """A linear network: no robustness, no masking, nothing an attack could get lost in."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES)).double().eval()


def images(model: nn.Module, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images in [0, 1], some pixels on the edge, with the labels that the network gives them."""
    x = (torch.rand(IMAGES, 1, 6, 6, generator=torch.Generator().manual_seed(5)) * 1.2 - 0.1).clamp(0, 1)
    x = x.to(dtype)
    with torch.no_grad():
        return x, model(x).argmax(1)


def streams(indices: list[int] | None = None) -> SampleRandom:
    return SampleRandom.for_images(0, "attack", range(IMAGES) if indices is None else indices)


def threats(attack: Attack) -> list[Threat]:
    """The threats an attack says it can work in: at least one of the two."""
    usable = []
    for threat in THREATS:
        try:
            attack.check_threat(threat)
        except ValueError:
            continue
        usable.append(threat)
    assert usable
    return usable


def robust_accuracy(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> float:
    """Share still classified right, judged as the harness does: what lies outside is projected back."""
    x_adv = threat.project(attack(model, x, y, threat, streams()), x)
    with torch.no_grad():
        return (model(x_adv).argmax(1) == y).double().mean().item()


def must_do_something(attack: Attack) -> None:
    model = linear()
    x, y = images(model)
    for threat in threats(attack):
        assert robust_accuracy(attack, model, x, y, threat) <= 0.25, threat


@pytest.mark.parametrize(("key", "extra"), ALL)
def test_eps_0_returns_the_clean_images(key: str, extra: dict[str, object]) -> None:
    model = network()
    x, y = images(model)
    for norm in ("linf", "l2"):
        x_adv = make(key, **extra)(model, x, y, Threat(norm=norm, eps=0.0), streams())
        assert torch.equal(x_adv, x)
        assert x_adv is not x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("key", "extra"), ALL)
def test_result_is_an_image_in_the_box_and_the_ball(
    key: str, extra: dict[str, object], dtype: torch.dtype
) -> None:
    model, attack = network(dtype=dtype), make(key, **extra)
    x, y = images(model, dtype)
    for threat in threats(attack):
        x_adv = attack(model, x, y, threat, streams())
        assert x_adv.shape == x.shape
        assert x_adv.dtype == dtype
        assert not x_adv.requires_grad
        assert x_adv.isfinite().all()
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        if attack.bounded:
            assert threat.size(x_adv - x).max() <= threat.eps + 1e-6


@pytest.mark.parametrize("noisy", [False, True], ids=["fixed", "random"])
@pytest.mark.parametrize(("key", "extra"), ALL)
def test_result_depends_neither_on_batch_nor_on_order(
    key: str, extra: dict[str, object], noisy: bool
) -> None:
    model, attack = network(noisy=noisy), make(key, **extra)
    x, y = images(network())
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(6))
    for threat in threats(attack):
        together = attack(model, x, y, threat, streams())
        permuted = attack(model, x[order], y[order], threat, streams(order.tolist()))
        single = [
            attack(model, x[i : i + 1], y[i : i + 1], threat, streams([i])) for i in range(0, IMAGES, 6)
        ]
        assert (permuted - together[order]).abs().max() <= 1e-6
        assert (torch.cat(single) - together[::6]).abs().max() <= 1e-6


@pytest.mark.parametrize(("key", "extra"), ALL)
def test_same_streams_same_result_and_nothing_else_is_touched(key: str, extra: dict[str, object]) -> None:
    model, attack = network(noisy=True), make(key, **extra)
    x, y = images(network())
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    before, settings = copy.deepcopy(model.state_dict()), settings_of(attack)
    x_before, y_before, rng = x.clone(), y.clone(), torch.get_rng_state()
    for threat in threats(attack):
        first = attack(model, x, y, threat, streams())
        assert torch.equal(first, attack(model, x, y, threat, streams()))
        generator = torch.Generator().manual_seed(8)
        other = attack(model, x, y, threat, generator)
        assert torch.equal(other, attack(model, x, y, threat, generator.manual_seed(8)))
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)
    assert settings_of(attack) == settings
    assert not any(m.training for m in model.modules())
    assert all(m.noise_source is None for m in model.modules() if isinstance(m, RandomModule))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for p in model.parameters():
        assert p.requires_grad
        assert p.grad is not None
        assert (p.grad == 7.0).all()


@pytest.mark.parametrize("key", KEYS)
def test_unusable_arguments_are_refused(key: str) -> None:
    model, attack = network(), make(key)
    x, y = images(model)
    threat = threats(attack)[0]
    with pytest.raises(ValueError, match="training mode"):
        attack(copy.deepcopy(model).train(), x, y, threat, streams())
    for wrong in (x + 0.5, x - 0.5, torch.full_like(x, math.nan)):
        with pytest.raises(ValueError, match=r"x: expected values in \[0, 1\]"):
            attack(model, wrong, y, threat, streams())
    with pytest.raises(ValueError, match="x: expected float images"):
        attack(model, (255 * x).to(torch.uint8), y, threat, streams())
    with pytest.raises(ValueError, match="y: expected labels"):
        attack(model, x, y[:-1], threat, streams())
    with pytest.raises(ValueError, match="generator: expected 12 random streams, got 3"):
        attack(model, x, y, threat, streams([0, 1, 2]))


@pytest.mark.parametrize("key", KEYS)
def test_an_empty_batch_stays_empty(key: str) -> None:
    model, attack = network(), make(key)
    x, y = images(model)
    assert attack(model, x[:0], y[:0], threats(attack)[0], streams([])).shape == (0, 1, 6, 6)


@pytest.mark.parametrize("key", STRONG)
def test_an_attack_breaks_a_network_without_robustness(key: str) -> None:
    must_do_something(make(key))


def test_an_attack_that_does_nothing_does_not_pass() -> None:
    class Idle(Attack):
        def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
            return x.clone()

    with pytest.raises(AssertionError):
        must_do_something(Idle())


@pytest.mark.parametrize("key", STRONG)
def test_given_classes_are_reached(key: str) -> None:
    model, attack = linear(), make(key, target="given")
    x, y = images(model)
    goal = (y + 1) % CLASSES
    for norm, eps in (("linf", 0.5), ("l2", 2.5)):
        threat = Threat(norm=norm, eps=eps)
        if threat.norm not in {t.norm for t in threats(attack)}:
            continue
        x_adv = threat.project(attack(model, x, goal, threat, streams()), x)
        assert (model(x_adv).argmax(1) == goal).double().mean() >= 0.9


@pytest.mark.parametrize(("key", "settings"), INVALID)
def test_an_invalid_setting_is_refused_by_name(key: str, settings: dict[str, object]) -> None:
    names = "|".join(settings)
    with pytest.raises(ValueError, match=rf"^({names}): expected .*, got "):
        make(key, **settings)


@pytest.mark.parametrize("key", KEYS)
def test_settings_are_frozen_documented_and_plain(key: str) -> None:
    cls = ATTACKS[key]
    with pytest.raises(TypeError):
        cls(no_such_setting=1)  # type: ignore[call-arg]
    attack = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.target = "next"  # type: ignore[misc]
    json.dumps(settings_of(attack))
    doc = inspect.getdoc(cls) or ""
    assert len(doc.splitlines()[0]) > 20
    assert all(f"``{name}``" in doc or f" {name}: " in doc for name in settings_of(attack))
    assert "https://" in (inspect.getmodule(cls).__doc__ or "")
    if cls.weak:
        assert "WEAK" in doc.splitlines()[0]


@pytest.mark.usefixtures("one_pass_at_a_time")
@pytest.mark.parametrize("key", KEYS)
def test_a_random_network_is_attacked_with_averaged_passes(key: str) -> None:
    model, settings = network(noisy=True), dict[str, object]()
    if "eot" in settings_of(make(key)):
        settings["eot"] = 3
    attack = make(key, **settings)
    x, y = images(network())
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    for threat in threats(attack):
        x_adv = attack(model, x, y, threat, streams())
        assert x_adv.isfinite().all()
    if settings:
        assert len(passes) >= 3
        # A source with its noise off gives the same gradient every time: one pass per step.
        silent = sum(2 * a.steps for a in [attack] * len(threats(attack)) if isinstance(a, Transfer))
        assert (len(passes) - silent) % 3 == 0


class BreaksOffPixel(nn.Module):
    """Linear where the first pixel is 1/2; elsewhere its output is not a number."""

    def __init__(self) -> None:
        super().__init__()
        self.body = linear()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return torch.where((x[:, :, 0, 0] - 0.5).abs() < 1e-9, out, torch.full_like(out, math.nan))


@pytest.mark.parametrize("key", STRONG)
def test_a_network_that_breaks_near_the_image_has_not_withstood(key: str) -> None:
    model, attack = BreaksOffPixel().eval(), make(key)
    x, _ = images(linear())
    x[:, :, 0, 0] = 0.5
    y = model(x).argmax(1)
    for threat in threats(attack):
        x_adv = attack(model, x, y, threat, streams())
        logits = model(x_adv)
        visibly_broken = ~logits.isfinite().all(1) | ~x_adv.flatten(1).isfinite().all(1)
        assert (visibly_broken | (logits.argmax(1) != y)).all()


@pytest.mark.parametrize(("key", "extra"), ALL)
def test_a_network_of_nans_ends_in_images_that_show_it(key: str, extra: dict[str, object]) -> None:
    class NotANumber(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :CLASSES] * math.nan

    attack = make(key, **extra)
    x, y = images(network())
    for threat in threats(attack):
        x_adv = attack(NotANumber().eval(), x, y, threat, streams())
        assert x_adv.shape == x.shape
        assert x_adv.dtype == x.dtype
