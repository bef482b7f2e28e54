"""Removing dead channels where layers are tied: skips that are trained, sums, channels side by side."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_sparse.certificate.checks.sparsity_records import dead_channels_change_nothing
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.models import MODELS
from robustbench_sparse.models.skips import SkipLayer
from robustbench_sparse.runs.shrunk_file import load_shrunk, record_of, save_shrunk
from robustbench_sparse.shrinking import proven
from robustbench_sparse.sparsity.shrink import surgery
from robustbench_sparse.sparsity.shrink.surgery import Shrunk, shrink_network
from tests.helpers.certificate_subjects import subject

pytest.importorskip("torch_pruning")


def build(key: str, classes: int | None, seed: int = 0, **settings: Any) -> nn.Module:
    """A network in float64 with biases and skips that are not zero."""
    torch.manual_seed(seed)
    network = MODELS[key](**settings).build(1, 8, classes).double().eval()
    with torch.no_grad():
        for m in network.modules():
            if isinstance(m, nn.Linear | nn.Conv2d) and m.bias is not None:
                m.bias.uniform_(0.1, 0.3)
            if isinstance(m, SkipLayer) and m.skip is not None:
                m.skip.uniform_(0.5, 1)
    return network


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mixing(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def skips(model: nn.Module) -> list[SkipLayer]:
    return [m for m in model.modules() if isinstance(m, SkipLayer)]


@torch.no_grad()
def silence(layer: nn.Module, *outputs: int) -> None:
    """Neurons or filters that are zero for every image."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    layer.weight[list(outputs)] = 0
    if layer.bias is not None:
        layer.bias[list(outputs)] = 0


def check_same(before: nn.Module, after: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        a, b = before(x), after(x)
    assert a.std(0).max() > 1e-6, "the images have to matter, or equality says nothing"
    torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10)


# Skips that are trained ----------------------------------------------------------------------------------


def test_a_zero_neuron_that_a_skip_feeds_is_alive() -> None:
    model = build(
        "dense_residual", 5, layers=3, width=10
    )  # x^1, x^2, x^3 are 10 wide; skips x^1 -> x^2, x^3, ...
    silence(mixing(model)[1], 3)  # of x^2, that x^1 reaches by a skip
    small = shrink_network(model, images())
    assert small.removed == {}
    check_same(model, small.model, images())


def test_a_channel_goes_where_all_that_add_to_it_are_zero() -> None:
    model = build("dense_residual", 5, layers=3, width=10)
    for layer in mixing(model)[:3]:
        silence(layer, 3, 4)
    small = shrink_network(model, images())
    assert small.removed == {f"layers.{i}.linear": (10, 8) for i in range(3)}
    check_same(model, small.model, images())


def test_a_channel_of_which_one_is_read_stays_everywhere() -> None:
    model = build("dense_residual", 5, layers=2, width=10)
    _, second, head = mixing(model)
    with torch.no_grad():
        second.weight[:, 3] = 0  # x^1_3 goes on by the skip to x^2_3 alone
    assert shrink_network(model, images()).removed == {}
    with torch.no_grad():
        head.weight[:, 3] = 0  # which no one reads either now
    small = shrink_network(model, images())
    assert small.removed == {"layers.0.linear": (10, 9), "layers.1.linear": (10, 9)}
    check_same(model, small.model, images())


def test_a_skip_of_strength_0_ties_nothing() -> None:
    model = build("dense_residual", 5, layers=3, width=10)
    second = skips(model)[1]
    assert second.skip is not None
    silence(mixing(model)[1], 3)
    with torch.no_grad():
        for layer in skips(model)[1:]:
            assert layer.skip is not None
            layer.skip[0] = 0  # none of x^1 reaches x^2 or x^3
    small = shrink_network(model, images())
    # x^2 and x^3 are still tied, and x^3_3 is alive.
    assert small.removed == {"layers.1.skip": (1, 0), "layers.2.skip": (2, 1)}
    check_same(model, small.model, images())
    with torch.no_grad():
        skips(model)[2].skip[:] = 0  # type: ignore[index]
    small = shrink_network(model, images())
    assert small.removed == {"layers.1.linear": (10, 9), "layers.1.skip": (1, 0), "layers.2.skip": (2, 0)}
    check_same(model, small.model, images())
    assert second.sources == [1], "the argument stays as it is"


def test_what_the_image_is_added_to_stays_as_wide_as_the_image() -> None:
    model = build("dense_residual", None, layers=3)  # 64 wide throughout, with skips from the image
    for layer in mixing(model):
        silence(layer, *range(10))
    small = shrink_network(model, images())
    assert small.removed == {}
    check_same(model, small.model, images())
    with torch.no_grad():
        for skip in skips(model):
            skip.skip[:] = 0  # type: ignore[index]
    small = shrink_network(model, images())
    widths = {f"layers.{i}.linear": (64, 54) for i in (0, 1)}  # the last one makes the image
    assert small.removed == {**widths, **{f"layers.{i}.skip": (i + 1, 0) for i in range(3)}}
    check_same(model, small.model, images())


def test_a_constant_goes_through_a_skip_into_its_readers_biases() -> None:
    """sigma(0) = 0.5 makes x^1_0 = 0.5 and x^2_0 = 0.5 w + sigma(W x^1), constant where that row is zero, too."""
    model = build("mlp", 5, hidden=(6, 6), activation="sigmoid", residual=1.0)
    first, second, last = mixing(model)
    (residual,) = skips(model)
    assert residual.skip is not None
    silence(first, 0)
    silence(second, 0)
    with torch.no_grad():
        residual.skip[0] = 0.25
        value = 0.25 * 0.5 + 0.5
        expected = last.bias + value * last.weight[:, 0]  # type: ignore[operator]
    small = shrink_network(model, images())
    assert small.removed == {"1": (6, 5), "3.inner.0": (6, 5)}
    torch.testing.assert_close(mixing(small.model)[2].bias.detach(), expected.detach())  # type: ignore[union-attr]
    check_same(model, small.model, images())


def test_an_autoencoders_image_stays() -> None:
    model = build("autoencoder", None, hidden=3, width=12, mean=(0.3,))
    for layer in mixing(model):
        silence(layer, 0, 7)
    small = shrink_network(model, images())
    assert small.removed == {f"network.layer{i}": (12, 10) for i in (1, 2, 3)}
    assert small.model(images()).shape == (6, 1, 8, 8)
    check_same(model, small.model, images())


def test_nothing_is_removed_of_a_network_without_weights() -> None:
    with pytest.raises(UserError, match=r"^the network has no weights: there is nothing to remove$"):
        shrink_network(MODELS["identity"]().build(1, 8, None), images())


# Channels side by side -----------------------------------------------------------------------------------


def test_densenet_by_hand() -> None:
    model = build("densenet", 5, layers=3, growth=4, transition=3)
    stem, first, second, third, transition, _ = mixing(model)
    silence(stem, 1)
    silence(third, 0, 2)
    with torch.no_grad():
        for reader in (second, third, transition):
            reader.weight[:, 4 + 3] = (
                0  # map 3 of the first layer: of two layers and the transition no one reads it
            )
        third.weight[:, 8 + 1] = 0  # map 1 of the second: the transition still does
        transition.weight[:2, 8:12] = 0
    small = shrink_network(model, images())
    assert small.removed == {"stem": (4, 3), "block.0.conv": (4, 3), "block.2.conv": (4, 2)}
    kernels = 3 * 1 + 3 * 3 + 4 * 6 + 2 * 10 + 3 * 12
    by_hand = 9 * kernels + (3 + 4 + 2 + 3) + (3 * 64 * 5 + 5)
    assert sum(p.numel() for p in small.model.parameters()) == by_hand
    assert len(first.weight) == 4
    check_same(model, small.model, images())


class Beside(nn.Module):
    """The image beside what a convolution makes of it, in front or behind; then a convolution and a linear layer."""

    def __init__(self, image_first: bool) -> None:
        super().__init__()
        self.image_first = image_first
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(5, 3, 3)
        self.linear = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        made = torch.relu(self.first(x))
        out = torch.cat((x, made) if self.image_first else (made, x), 1)
        logits: Tensor = self.linear(torch.relu(self.second(out)).mean((2, 3)))
        return logits


@pytest.mark.parametrize("image_first", [False, True])
def test_the_image_beside_features_is_not_taken_for_them(image_first: bool) -> None:
    torch.manual_seed(0)
    model = Beside(image_first).double().eval()
    silence(model.first, 0)
    with torch.no_grad():
        model.second.weight[:, 0] = (
            0  # what the library takes for the dead filter, although it may be the image
        )
    small = shrink_network(model, images())
    assert set(small.removed) <= {"first"}
    check_same(model, small.model, images())
    assert model.second.weight.shape[1] == 5


class Random(nn.Module):
    """Random calls on random earlier values."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.calls: list[tuple[str, list[int], int]] = []
        self.layers = nn.ModuleList()
        widths = [2]
        for _ in range(draw.randint(3, 8)):
            kind = draw.choice(
                ["conv", "conv", "norm", "relu", "sigmoid", "cat", "cat", "cat", "add", "skip"]
            )
            i = draw.randrange(len(widths))
            same = [j for j, width in enumerate(widths) if width == widths[i]]
            given, width = [i], widths[i]
            if kind == "conv":
                width = draw.choice([2, 3, 4])
                self.layers.append(nn.Conv2d(widths[i], width, 3, padding=1, bias=draw.random() < 0.6))
            elif kind == "norm":
                self.layers.append(nn.BatchNorm2d(width))
            elif kind == "cat":
                given += [draw.randrange(len(widths)) for _ in range(draw.choice([1, 2]))]
                width = sum(widths[j] for j in given)
            elif kind in ("add", "skip"):
                given.append(draw.choice(same))
                if kind == "skip":
                    self.layers.append(SkipLayer([0], draw.choice([0.0, 0.7])))
            self.calls.append((kind, given, len(self.layers) - 1))
            widths.append(width)
        self.flat = draw.random() < 0.5
        self.beside = draw.randrange(len(widths))
        features = (widths[-1] + widths[self.beside]) * (16 if self.flat else 1)
        self.hidden, self.linear = nn.Linear(features, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        values = [x]
        for kind, given, place in self.calls:
            parts = [values[i] for i in given]
            values.append(self.call(kind, parts, self.layers[place] if place >= 0 else self))
        out = torch.cat((values[-1], values[self.beside]), 1)
        out = out.flatten(1) if self.flat else out.mean((2, 3))
        logits: Tensor = self.linear(torch.relu(self.hidden(out)))
        return logits

    @staticmethod
    def call(kind: str, parts: list[Tensor], layer: nn.Module) -> Tensor:
        """One of them."""
        if kind == "skip":
            assert isinstance(layer, SkipLayer)
            return layer.with_skips(parts[0], [parts[1]])
        if kind in ("conv", "norm"):
            out: Tensor = layer(parts[0])
            return out
        if kind == "cat":
            return torch.cat(parts, 1)
        if kind == "add":
            return parts[0] + parts[1]
        return torch.relu(parts[0]) if kind == "relu" else torch.sigmoid(parts[0])


@torch.no_grad()
def sparsify(model: Random) -> None:
    """Zeros of all kinds, all over; the last layer lives."""

    def some(count: int) -> Tensor:
        return torch.rand(count) < 0.4

    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.normal_()
            m.bias.normal_()
            m.weight[some(len(m.weight))] = 0
            m.bias[some(len(m.bias))] = 0
        elif isinstance(m, nn.Conv2d | nn.Linear) and m is not model.linear:
            m.weight[some(len(m.weight))] = 0
            m.weight[:, some(m.weight.shape[1])] = 0
            if m.bias is not None:
                m.bias[some(len(m.bias))] = 0


def test_whatever_is_tied_to_whatever_the_function_stays() -> None:
    removed = 0
    for seed in range(40):
        torch.manual_seed(seed)
        model = Random(seed).double().eval()
        sparsify(model)
        x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
        small = shrink_network(model, x)
        with torch.no_grad():
            torch.testing.assert_close(small.model(x), model(x), rtol=1e-10, atol=1e-10, msg=f"seed {seed}")
        assert shrink_network(small.model, x).removed == {}, seed  # nothing dead is left behind
        removed += any(name.startswith("layers.") for name in small.removed)
    assert removed >= 10


def test_the_library_is_not_believed_where_it_takes_one_channel_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("densenet", 5, layers=2, growth=4)
    silence(mixing(model)[1], 2)
    assert shrink_network(model, images()).removed == {"block.0.conv": (4, 3)}
    right = surgery._group

    def shifted(graph: Any, layer: nn.Module, outputs: list[int]) -> Any:
        group = right(graph, layer, outputs)
        for item in group:
            if isinstance(item.dep.target.module, nn.Conv2d) and item.dep.target.module is not layer:
                item.idxs[:] = [i - 1 for i in item.idxs]
        return group

    monkeypatch.setattr(surgery, "_group", shifted)
    small = shrink_network(model, images())
    assert small.removed == {}
    check_same(model, small.model, images())


# Proof, file and certificate -----------------------------------------------------------------------------


def test_a_restored_image_that_changes_is_refused() -> None:
    model = build("dense_residual", None, layers=2, width=6)
    louder = build("dense_residual", None, layers=2, width=6)
    with torch.no_grad():
        skips(louder)[1].skip[0] *= 1.01  # type: ignore[index]
    with pytest.raises(UserError, match=r"refused: .* nothing was written"):
        proven(model, Shrunk(louder), images())
    assert (
        proven(model, Shrunk(build("dense_residual", None, layers=2, width=6)), images())["difference"] == 0.0
    )


def partly_skipped() -> nn.Module:
    model = build("dense_residual", None, layers=3).float()
    with torch.no_grad():
        for skip in skips(model)[:2]:
            skip.skip[:] = 0  # type: ignore[index]
        skips(model)[2].skip[0] = 0  # type: ignore[index]
        skips(model)[2].skip[2] = 0  # type: ignore[index]
    for layer in mixing(model)[:2]:
        silence(layer, *range(5))
    return model


RECORD = {"factory": "somewhere:network", "images": {"channels": 1, "size": 8, "classes": 10}}


def test_a_shrunk_network_with_fewer_skips_is_read_back(tmp_path: Path) -> None:
    model, x = partly_skipped(), images().float()
    small = shrink_network(model, x)
    assert small.removed == {
        "layers.1.linear": (64, 59),  # x^1 is held to 64 by the skip to x^3, which is the image
        **{"layers.0.skip": (1, 0), "layers.1.skip": (2, 0), "layers.2.skip": (3, 1)},
    }
    path = tmp_path / "small.safetensors"
    save_shrunk(path, small.model, RECORD)
    again = load_shrunk(path, build("dense_residual", None, seed=7, layers=3).float())
    assert torch.equal(again(x), small.model(x))
    assert [layer.sources for layer in skips(again)] == [[], [], [1]]


def test_a_network_without_skips_has_none_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_shrunk(path, build("mlp", 5, hidden=(6,)), RECORD)
    about = record_of(path)
    assert about is not None
    assert "skips" not in about


@pytest.mark.parametrize("wrong", [[0, 5], [1, 1], ["1"], 3, None, [0.0]])
def test_a_file_with_other_skips_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: object
) -> None:
    small = shrink_network(partly_skipped(), images().float())
    path = tmp_path / "small.safetensors"
    monkeypatch.setattr(
        "robustbench_sparse.runs.shrunk_file.skips_of",
        lambda model: {f"layers.{i}": wrong if i == 2 else [] for i in range(3)},
    )
    save_shrunk(path, small.model, RECORD)
    with pytest.raises(UserError, match=r"layers\.2: "):
        load_shrunk(path, build("dense_residual", None, layers=3).float())
    with pytest.raises(UserError, match="other layers have skips"):
        load_shrunk_with_missing(path, monkeypatch)


def load_shrunk_with_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_sparse.runs.shrunk_file.skips_of", lambda model: {"layers.0": []})
    load_shrunk(path, build("dense_residual", None, layers=3).float())


def test_the_certificate_shrinks_such_networks_by_itself() -> None:
    for key, settings in (
        ("mlp", {"hidden": (8, 8), "residual": 1.0}),
        ("densenet", {"layers": 2, "growth": 4}),
        ("dense_residual", {"layers": 2, "width": 8}),
    ):
        model = build(key, 10, **settings).float()
        for layer in mixing(model)[:-1]:
            if len(layer.weight) > 1:
                silence(layer, 0)
        finding = dead_channels_change_nothing(subject(model))
        assert finding.status == "passed", (key, finding)
        assert finding.measured["parameters left"] < finding.measured["parameters"]  # type: ignore[operator]
