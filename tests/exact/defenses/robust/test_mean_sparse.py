"""MeanSparse against the paper's formula number by number, its statistics, and a run from training to its file."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks.base import Threat
from defenses import MeanSparse
from defenses.base import Step
from defenses.robust.mean_sparse import MeanSparsified
from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.engine.fast import FastNetwork
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import fill, load_weights, save_weights
from tests.helpers.defense_loop import X, chain, made


def images(split: str, count: int, generator: torch.Generator) -> Tensor:
    assert split == "train"
    return X[torch.randint(len(X), (count,), generator=generator)]


def step(model: nn.Module) -> Step:
    return Step(model, None, Threat(), torch.Generator().manual_seed(0), images)


def deployed(alpha: float = 0.4, count: int = 20) -> tuple[nn.Module, nn.Module, Tensor]:
    """The network in training, the one that is judged, and the images that were measured."""
    defense = MeanSparse(alpha=alpha, images=count)
    model = made(defense.wrap(chain)).eval()
    defense.begin(step(model))
    seen = images("train", count, torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model, defense.deploy(model).eval(), seen


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (5, 3, 4, 2)])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_the_formula_number_by_number(shape: tuple[int, ...], alpha: float) -> None:
    rng = np.random.default_rng(0)
    x, mean, std = rng.normal(size=shape), rng.normal(size=3), rng.uniform(0.1, 2, size=3)
    expected = x.copy()
    for index in np.ndindex(*shape):
        if abs(x[index] - mean[index[1]]) <= alpha * std[index[1]]:
            expected[index] = mean[index[1]]
    module = MeanSparsified(alpha)
    assert torch.equal(module(torch.tensor(x)), torch.tensor(x))  # nothing is measured yet
    module.mean, module.std = torch.tensor(mean), torch.tensor(std)
    assert np.array_equal(module(torch.tensor(x)).numpy(), expected)
    assert alpha < 1 or not np.array_equal(expected, x)


def test_the_gradient_is_zero_inside_and_one_outside() -> None:
    module = MeanSparsified(1.0)
    module.mean, module.std = torch.tensor([0.5]), torch.tensor([0.25])
    x = torch.tensor([[0.2], [0.3], [0.5], [0.7], [0.8]], requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1, 0, 0, 0, 1]


def test_mean_and_deviation_are_those_of_what_each_activation_gets() -> None:
    model, judged, seen = deployed()
    layers = [m for m in judged.modules() if isinstance(m, MeanSparsified)]
    assert len(layers) == 3
    inputs: list[Tensor] = []
    plain = made(chain).eval()
    for m in plain.modules():
        if isinstance(m, nn.ReLU):
            m.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    plain(seen)
    for layer, values in zip(layers, inputs, strict=True):
        rows = values.detach().double().numpy()
        axes = (0, *range(2, rows.ndim))
        assert np.allclose(layer.mean.numpy(), rows.mean(axes), atol=1e-6)
        assert np.allclose(layer.std.numpy(), rows.std(axes), atol=1e-6)
    assert all(m.mean.numel() == 0 for m in model.modules() if isinstance(m, MeanSparsified))
    assert torch.equal(model(X), plain(X))  # in training nothing is sparsified
    assert not torch.equal(judged(X), plain(X))


def test_with_a_vanishing_width_the_network_stays_as_it_is() -> None:
    model, judged, _ = deployed(alpha=1e-7)
    assert torch.allclose(judged(X), model(X), atol=1e-4)


def test_the_file_brings_the_statistics_back(tmp_path: Path) -> None:
    model, judged, _ = deployed()
    save_weights(tmp_path / "w.safetensors", judged.state_dict())
    weights = load_weights(tmp_path / "w.safetensors")
    again = copy.deepcopy(model)
    fill(again, weights, tmp_path / "w.safetensors")
    assert torch.equal(again(X), judged(X))
    again.load_state_dict(model.state_dict())  # back to what is not measured
    assert torch.equal(again(X), model(X))
    narrow = {k: v[:-1] if k == "0.weight" else v for k, v in weights.items()}
    with pytest.raises(UserError, match=r"0\.weight is"):
        fill(again, narrow, tmp_path / "w.safetensors")


def test_a_quick_stand_in_computes_the_same() -> None:
    _, judged, _ = deployed()
    fast = FastNetwork(judged, precision="fp32")
    assert torch.allclose(fast(X), judged(X), atol=1e-5)


def test_an_activation_under_two_names_stays_one_and_two_widths_are_refused() -> None:
    class Shared(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.relu = nn.ReLU()
            self.also, self.first, self.second = self.relu, nn.Conv2d(3, 4, 1), nn.Conv2d(4, width, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.relu(self.second(self.also(self.first(x))))
            return out.mean((2, 3))

    defense = MeanSparse(alpha=0.3, images=4)
    model = defense.wrap(lambda: Shared(4))()
    assert model.relu is model.also
    defense.begin(step(model))
    with pytest.raises(
        ValueError, match="alpha: expected activations used at one place each, or of one width"
    ):
        defense.begin(step(MeanSparse(alpha=0.3).wrap(lambda: Shared(5))()))


def test_a_network_without_activation_modules_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha: expected a network with activation modules"):
        MeanSparse(alpha=0.1).check(nn.Linear(2, 2))
    MeanSparse().check(nn.Linear(2, 2))


def test_a_run_is_judged_as_its_file_says(tmp_path: Path) -> None:
    raw = {
        "name": "ms",
        "data": "digits",
        "threat": {"eps": 0.1},
        "attacks": {"plain": {"name": "apgd", "steps": 5}, "smoothed": {"name": "smoothed", "steps": 5}},
        "evaluation": {"limit": 40},
        "train": {"epochs": 2, "selection": "last"},
        "model": {"name": "mlp", "hidden": [16]},
        "runs": {
            "natural": {},
            "sparse": {"defenses": [{"name": "mean_sparse", "alpha": 0.5, "images": 100}]},
        },
    }
    run_benchmark(raw, out=tmp_path, device="cpu")
    files = {p.parent.name.partition("-")[0]: load_weights(p) for p in tmp_path.rglob("model.safetensors")}
    assert len(files) == 2
    weights = sorted(files.values(), key=len)
    assert sum("sparse.mean" in name for name in weights[1]) == 1
    assert all(t.numel() > 0 for t in weights[1].values())
    own = [t for n, t in weights[1].items() if ".sparse." not in n]
    assert all(torch.equal(a, b) for a, b in zip(own, weights[0].values(), strict=True))  # trained as without
