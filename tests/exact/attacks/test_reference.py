"""``reference: prediction``: attacks against what the network itself says of the clean image (Roith 1.2)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from attacks import ATTACKS, FGSM, IFGSM, PGD, Attack, SampleRandom, Threat
from attacks.base import RandomModule, Reference
from attacks.from_torchattacks import FromTorchattacks
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.config.plugins import settings_of
from tests.helpers.small import small

THREAT = Threat(eps=0.05)
W = torch.tensor([[1.0, -2.0, 0.5, 0.25], [-1.0, 1.0, 0.25, -0.5], [0.5, 0.5, -1.0, 1.0]])
X = torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(4)) * 0.6 + 0.2


def linear(x: Tensor) -> Tensor:
    return x.flatten(1) @ W.T


class Linear(nn.Module):
    """W x."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x)


@dataclass(frozen=True, kw_only=True)
class Shows(Attack):
    """Returns the clean images and remembers the labels it was given."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        SEEN.append(y)
        return x


SEEN: list[Tensor] = []


def predictions() -> Tensor:
    return linear(X).argmax(1)


def streams(seed: int = 0) -> SampleRandom:
    return SampleRandom.for_images(seed, "test", range(len(X)))


@pytest.mark.parametrize("target", ["none", "next", "runner_up"])
@pytest.mark.parametrize("cls", [FGSM, IFGSM, PGD])
def test_it_is_the_attack_on_the_predicted_labels(cls: type[Attack], target: str) -> None:
    model, wrong = Linear().eval(), (predictions() + 1) % 3
    by_prediction = cls(target=target, reference="prediction")  # type: ignore[arg-type]
    by_label = cls(target=target)  # type: ignore[arg-type]
    found = by_prediction(model, X, wrong, THREAT, streams())
    assert torch.equal(found, by_label(model, X, predictions(), THREAT, streams()))
    assert not torch.equal(found, by_label(model, X, wrong, THREAT, streams()))


def test_fgsm_ascends_the_loss_against_the_prediction_in_closed_form() -> None:
    """x + eps sign(W^T (softmax(W x) - e_p)), p the prediction, whatever the label says."""
    model, p = Linear().eval(), predictions()
    found = FGSM(reference="prediction")(model, X, torch.zeros_like(p), THREAT, streams())
    rise = (linear(X).softmax(1) - nn.functional.one_hot(p, 3)) @ W
    assert torch.allclose(found, X + 0.05 * rise.sign().view_as(X))


def test_labels_decide_by_default() -> None:
    SEEN.clear()
    labels = (predictions() + 1) % 3
    for reference in ("label", "prediction"):
        Shows(reference=reference)(Linear().eval(), X, labels, THREAT)
    assert torch.equal(SEEN[0], labels)
    assert torch.equal(SEEN[1], predictions())
    assert SEEN[1].dtype == labels.dtype


class StandIn(Linear):
    """Stands in for a network that says the opposite."""

    def exact(self, x: Tensor) -> Tensor:
        return -linear(x)


def test_a_stand_in_is_attacked_on_what_the_network_itself_says() -> None:
    SEEN.clear()
    Shows(reference="prediction")(StandIn().eval(), X, torch.zeros(12, dtype=torch.long), THREAT)
    assert torch.equal(SEEN[0], linear(X).argmin(1))


class Fuzzy(RandomModule):
    """Logits with so much noise that one pass says little of the mean."""

    def forward(self, x: Tensor) -> Tensor:
        clean = linear(x)
        return clean + 0.5 * self.draw(clean)


@dataclass(frozen=True, kw_only=True)
class ShowsMean(Shows):
    eot: int = 1000


def test_a_random_networks_prediction_is_that_of_averaged_passes() -> None:
    SEEN.clear()
    ShowsMean(reference="prediction")(Fuzzy().eval(), X, torch.zeros(12, dtype=torch.long), THREAT, streams())
    gaps = linear(X).topk(2).values
    # Five standard deviations of the difference of two means.
    sure = gaps[:, 0] - gaps[:, 1] > 5 * 0.5 * (2 / 1000) ** 0.5
    assert sure.sum() >= 8
    assert torch.equal(SEEN[0][sure], predictions()[sure])


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("pgd", {"reference": "guess"}),
        ("pgd", {"reference": "prediction", "target": "given"}),
        ("pgd_mse", {"reference": "prediction"}),
    ],
)
def test_what_cannot_be_meant_is_refused(key: str, settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^reference: expected label"):
        ATTACKS[key](**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", sorted(ATTACKS))
def test_the_default_is_in_no_record(key: str) -> None:
    """What names a stored outcome is as it was before there was such a setting."""
    record = AttackPlan("a", key, ATTACKS[key](), THREAT).record()
    assert "reference" not in record
    assert "target" in record


def test_the_record_names_what_is_not_the_default() -> None:
    assert settings_of(FGSM(reference="prediction"))["reference"] == "prediction"


def test_a_config_may_say_so() -> None:
    raw = small(attacks={"own": {"name": "pgd", "steps": 2, "reference": "prediction"}})
    (planned,) = resolve(raw).attacks
    assert planned.attack.reference == "prediction"
    assert planned.record()["reference"] == "prediction"


@pytest.mark.parametrize("reference", ["label", "prediction"])
def test_torchattacks_take_it_beside_their_own_settings(reference: Reference) -> None:
    pytest.importorskip("torchattacks")
    raw = small(attacks={"theirs": {"name": "torchattacks:FGSM", "reference": reference}})
    (planned,) = resolve(raw).attacks
    assert isinstance(planned.attack, FromTorchattacks)
    assert planned.attack.reference == reference
    found = planned.attack(Linear().eval(), X, (predictions() + 1) % 3, THREAT)
    labels = predictions() if reference == "prediction" else (predictions() + 1) % 3
    assert torch.allclose(found, FGSM()(Linear().eval(), X, labels, THREAT), atol=1e-6)
