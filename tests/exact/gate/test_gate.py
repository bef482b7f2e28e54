"""The gate catches networks that are fed or built wrongly in one way each, and says of right ones that they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from attacks.base import RandomModule
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.gate import CHECKS, Line, Look, admit, examine
from robustbench_sparse.models.base import Normalise
from robustbench_sparse.sources.preparation import NORMALISATIONS, Preparation
from tests.helpers.own_networks import TRAINING, coloured, digits, fit_head, small_cnn, trained

MNIST, HALF, IMAGENET = (Normalise(*NORMALISATIONS[name]) for name in ("mnist", "half", "imagenet"))
NAMES = tuple(map(str, range(10)))


def look(model: nn.Module, x: Tensor | None = None, y: Tensor | None = None, **known: object) -> Look:
    if x is None or y is None:
        x, y = (part[900:1200] for part in digits())
    return Look(model=model.eval(), x=x, y=y, names=NAMES, **known)  # type: ignore[arg-type]


def lines_of(s: Look) -> dict[str, Line]:
    return {line.check: line for line in examine(s)}


def alarms(s: Look) -> dict[str, str]:
    """Checks that warn or stop, and what they say."""
    return {check: line.text for check, line in lines_of(s).items() if line.status in ("warn", "stop")}


@cache
def normalised() -> nn.Sequential:
    """A network that expects digits normalised as MNIST is."""
    x, y = digits()
    model = nn.Sequential(MNIST, small_cnn())
    return nn.Sequential(fit_head(model, x[:900], y[:900])[1]).eval()


@cache
def colourful() -> nn.Sequential:
    """A network of three channels that expects ImageNet's normalisation."""
    x, y = coloured()
    model = nn.Sequential(IMAGENET, small_cnn(3))
    return fit_head(model, x[:TRAINING], y[:TRAINING]).eval()  # type: ignore[return-value]


def test_a_right_network_passes_every_check() -> None:
    found = lines_of(look(nn.Sequential(MNIST, normalised())))
    assert list(found) == [check.name for check in CHECKS]
    assert {line.status for check, line in found.items() if check != "colours"} == {"ok"}
    assert found["colours"].status == "skipped"
    x, y = coloured()
    assert alarms(look(colourful(), x[TRAINING:], y[TRAINING:])) == {}


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ([], "with mnist in front: was it forgotten? --mean mnist"),
        ([MNIST, MNIST], "taken back: is it done twice?"),
        ([HALF], "in place of half: --mean"),
    ],
)
def test_normalisations(front: list[nn.Module], said: str) -> None:
    s = look(nn.Sequential(*front, normalised()))
    found = alarms(s)
    assert said in found["normalisation"]
    assert set(found) <= {"normalisation", "clean"}


def test_the_declared_normalisation_is_tried_against_others() -> None:
    s = look(
        nn.Sequential(Normalise((0.3,), (0.9,)), normalised()),
        front=(torch.tensor([0.3]), torch.tensor([0.9])),
    )
    assert "in place of its own: --mean mnist" in alarms(s)["normalisation"]


@cache
def permuted(order: tuple[int, ...]) -> nn.Module:
    """A network whose logits stand in another order."""
    model = trained()
    with torch.no_grad():
        model[4].weight.copy_(model[4].weight[list(order)])
        model[4].bias.copy_(model[4].bias[list(order)])
    return model


@pytest.mark.parametrize(
    "order", [(3, 1, 7, 0, 9, 2, 5, 8, 4, 6), (0, 1, 2, 3, 4, 5, 6, 7, 9, 8), (4, 1, 2, 0, 3, 5, 6, 7, 8, 9)]
)
def test_labels_in_another_order(order: tuple[int, ...]) -> None:
    found = alarms(look(permuted(order)))
    text = found.pop("labels")
    assert "--classes" in text
    if (
        "another order" in text
    ):  # the cure puts the logits back: class c is answered by the logit that stands for it
        cure = [int(i) for i in text.rpartition("--classes ")[2].split(",")]
        assert [order[i] for i in cure] == list(range(10))
    assert set(found) <= {"clean"}


def test_labels_one_off() -> None:
    found = alarms(look(permuted((*range(1, 10), 0))))
    assert "labels one larger" in found["labels"] or "labels one smaller" in found["labels"]


def test_labels_of_a_network_that_has_learnt_nothing_are_left_alone() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        assert "labels" not in alarms(look(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))))


def test_colours_the_other_way_round() -> None:
    x, y = coloured()
    found = alarms(look(colourful(), x[TRAINING:].flip(1), y[TRAINING:]))
    assert "trained on BGR" in found["colours"]


class Through(nn.Module):
    """A function before or behind a network."""

    def __init__(
        self, network: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]
    ):
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.network(self.before(x)))


def same(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("model", "check", "said"),
    [
        (lambda: nn.Sequential(trained(), nn.Softmax(1)), "output", "probabilities and no logits"),
        (lambda: nn.Sequential(trained(), nn.Sigmoid()), "output", "of a sigmoid?"),
        (lambda: Through(trained(), F.dropout, same), "mode", "the same images get other answers"),
        (
            lambda: Through(trained(), same, lambda z: z - z.mean(0, keepdim=True)),
            "mode",
            "depends on the others in its batch",
        ),
        (lambda: Stays(trained()), "mode", "stays in training mode"),
        (lambda: Through(trained(), Tensor.detach, same), "gradients", "asking for one fails (RuntimeError)"),
        (
            lambda: Through(trained(), lambda x: (x * 15).round() / 15, same),
            "gradients",
            "zero on 100 % of the images",
        ),
        (
            lambda: Through(trained(), lambda x: x + ((x * 15).round() / 15 - x).detach(), same),
            "gradients",
            "differ from finite differences",
        ),
        (lambda: masked(trained()), "masks", "2 weights have a pruning mask beside them"),
        (
            lambda: Through(trained(), same, lambda z: torch.where(z >= z.amax(1, True), z / 0, z)),
            "output",
            "not finite on 300 of 300",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_is_answered(model: Callable[[], nn.Module], check: str, said: str) -> None:
    found = lines_of(look(model()))
    assert found[check].status == "warn"
    assert said in found[check].text


class Stays(nn.Module):
    """Goes back to training mode whenever it is asked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.BatchNorm2d(1, affine=False), network)

    def train(self, mode: bool = True) -> Stays:
        super().train(True)
        return self

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        return out


def masked(model: nn.Sequential) -> nn.Module:
    for layer in (model[0], model[4]):
        prune.l1_unstructured(layer, "weight", 0.1)
    return model


class Noise(RandomModule):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * self.draw(x)


def test_small_logits_behind_a_relu_are_logits() -> None:
    found = lines_of(look(Through(trained(), same, lambda z: z.relu() / 100)))
    assert found["output"].status == "ok"


def test_noise_that_is_declared_is_no_fault() -> None:
    found = lines_of(look(nn.Sequential(Noise(), trained())))
    assert found["mode"].text == "random, as it says"
    assert {line.status for line in found.values()} <= {"ok", "skipped"}
    before = torch.random.get_rng_state()
    examine(look(nn.Sequential(Noise(), trained())))
    assert torch.equal(before, torch.random.get_rng_state()), "torch's own stream stays as it was"


def test_sizes() -> None:
    x, y = digits()
    s = look(nn.Sequential(nn.Upsample(scale_factor=2), trained()), x[900:1000], y[900:1000])
    assert lines_of(s)["size"].status == "note"
    assert "from 8 to 16 pixels" in lines_of(s)["size"].text
    s = look(trained(), preparation=Preparation(size=224, crop=0.875))
    assert "--set data.size=224 --set data.crop=0.875" in alarms(s)["size"]


def test_images_out_of_range_stop_before_anything_is_asked() -> None:
    x, y = (part[900:1000] for part in digits())
    for images, said in (
        (255 * x, "divide bytes by 255"),
        (x / 255, "divided by 255 twice"),
        (x - 0.5, "got -0.5"),
    ):
        (line,) = examine(look(nn.Identity(), images, y))
        assert line.status == "stop"
        assert said in line.text


def test_what_stops_says_what_the_reason_may_be() -> None:
    with pytest.raises(
        UserError, match=r"clean accuracy .* guessing has 10\.0 %: nothing was attacked; likely: labels"
    ):
        admit(examine(look(permuted((5, 6, 7, 8, 9, 0, 1, 2, 3, 4)))))


@pytest.mark.parametrize(
    ("expected", "claim", "status"), [(99.9, None, "stop"), (70, None, "ok"), (None, 99.9, "warn")]
)
def test_what_is_expected(expected: float | None, claim: float | None, status: str) -> None:
    weak = Through(trained(), lambda x: 0.6 * x, same)
    assert lines_of(look(weak, expected=expected, claim=claim))["clean"].status == status


def test_a_black_box_is_asked_for_no_gradient() -> None:
    found = lines_of(look(Through(trained(), Tensor.detach, same), black_box=True))
    assert found["gradients"].status == "skipped"


def test_a_network_that_fails_is_a_line_and_no_crash() -> None:
    def leaves(x: Tensor) -> Tensor:
        if x.requires_grad:
            raise SystemExit(3)
        return x

    assert "SystemExit" in alarms(look(Through(trained(), leaves, same)))["gradients"]
