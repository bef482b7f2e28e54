"""What holds for every network of the table of contents."""

from __future__ import annotations

import copy
import dataclasses
import math
import random

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_sparse.models import MODELS
from robustbench_sparse.models.base import ModelSpec

SHAPES = [(1, 8), (1, 28), (3, 32), (2, 13)]  # channels, size
CLASSES = 7
CLASSIFIERS = [key for key, spec in MODELS.items() if "classify" in spec.tasks]
RESTORERS = [key for key, spec in MODELS.items() if "restore" in spec.tasks]


def make(key: str, channels: int, size: int, seed: int = 0, **settings: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS[key](**settings).build(channels, size, CLASSES)


def images(count: int, channels: int, size: int) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("key", MODELS)
class TestEverySpec:
    def test_is_a_documented_frozen_keyword_only_dataclass_with_defaults(self, key: str) -> None:
        spec = MODELS[key]
        assert issubclass(spec, ModelSpec)
        assert spec.key == key
        assert spec.__doc__
        assert not spec.__doc__.startswith(f"{spec.__name__}("), "the signature that dataclass writes"
        for field in dataclasses.fields(spec):
            assert field.kw_only
            assert field.default is not dataclasses.MISSING
            if field.name not in ("mean", "std"):
                assert f"{field.name}:" in spec.__doc__
        with pytest.raises(dataclasses.FrozenInstanceError):
            spec().mean = (0.5,)

    def test_says_what_it_is_for_and_builds_nothing_else(self, key: str) -> None:
        tasks = MODELS[key].tasks
        assert tasks
        assert set(tasks) <= {"classify", "restore"}
        for task, classes in (("classify", CLASSES), ("restore", None)):
            if task not in tasks:
                with pytest.raises(
                    ValueError, match=f"^task: expected .* for the network {key}, got '{task}'"
                ):
                    MODELS[key]().build(1, 28, classes)


@pytest.mark.parametrize("key", RESTORERS)
class TestEveryRestorer:
    @pytest.mark.parametrize(("channels", "size"), SHAPES)
    def test_gives_images_and_a_gradient_to_every_parameter(self, key: str, channels: int, size: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = MODELS[key]().build(channels, size, None)
        x = images(4, channels, size)
        out = model(x)
        assert out.shape == x.shape
        assert out.isfinite().all()
        F.mse_loss(out, 1 - x).backward() if out.requires_grad else None
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name

    def test_an_output_depends_on_its_image_only(self, key: str) -> None:
        model = MODELS[key]().build(1, 13, None).eval()
        x = images(5, 1, 13)
        with torch.no_grad():
            alone = torch.cat([model(image[None]) for image in x])
            torch.testing.assert_close(alone, model(x), rtol=1e-4, atol=1e-5)

    def test_builds_on_meta(self, key: str) -> None:
        with torch.device("meta"):
            assert MODELS[key](mean=(0.5,)).build(3, 13, None)(torch.empty(2, 3, 13, 13)).shape == (
                2,
                3,
                13,
                13,
            )


@pytest.mark.parametrize("key", CLASSIFIERS)
class TestEveryModel:
    @pytest.mark.parametrize(("channels", "size"), SHAPES)
    def test_gives_finite_logits_and_a_gradient_to_every_parameter(
        self, key: str, channels: int, size: int
    ) -> None:
        model = make(key, channels, size)
        assert model.training
        logits = model(images(4, channels, size))
        assert logits.shape == (4, CLASSES)
        assert logits.isfinite().all()
        F.cross_entropy(logits, torch.arange(4)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name

    def test_the_image_gets_a_gradient_in_eval_mode(self, key: str) -> None:
        model = make(key, 3, 32).eval()
        x = images(2, 3, 32).requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x), torch.tensor([0, 1])), x)
        assert (grad.flatten(1).abs().amax(1) > 0).all()

    def test_in_eval_mode_a_prediction_repeats_and_depends_on_its_image_only(self, key: str) -> None:
        model = make(key, 1, 28)
        x = images(5, 1, 28)
        with torch.no_grad():
            model(x)  # batch-norm statistics leave their initial values
            model.eval()
            before = copy.deepcopy(model.state_dict())
            first = model(x)
            assert torch.equal(first, model(x))
            alone = torch.cat([model(image[None]) for image in x])
        torch.testing.assert_close(alone, first, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_predictions_differ_between_images(self, key: str) -> None:
        model = make(key, 1, 28).eval()
        with torch.no_grad():
            logits = model(images(3, 1, 28))
        assert not torch.allclose(logits[0], logits[1], rtol=0, atol=1e-6)

    def test_weights_come_from_torchs_generator_alone(self, key: str) -> None:
        python, numpy = random.getstate(), np.random.get_state()[1].copy()
        one, same, other = (make(key, 1, 8, seed=s).state_dict() for s in (3, 3, 4))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)
        assert random.getstate() == python
        assert np.array_equal(np.random.get_state()[1], numpy)

    @pytest.mark.parametrize("settings", [{}, {"mean": (0.5,), "std": (0.25,)}])
    def test_builds_on_meta(self, key: str, settings: dict[str, object]) -> None:
        with torch.device("meta"):
            model = MODELS[key](**settings).build(3, 32, CLASSES)
            assert model(torch.empty(2, 3, 32, 32)).shape == (2, CLASSES)
        tensors = [*model.parameters(), *model.buffers()]
        assert all(t.device.type == "meta" for t in tensors)
        real = make(key, 3, 32, **settings).state_dict()
        assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in real.items()}

    def test_channels_last_changes_nothing_but_rounding(self, key: str) -> None:
        model = make(key, 3, 32).eval()
        x = images(3, 3, 32)
        with torch.no_grad():
            expected = model(x)
            model = model.to(memory_format=torch.channels_last)
            got = model(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

    def test_state_survives_safetensors(self, key: str) -> None:
        model, other = make(key, 1, 8, mean=(0.1,), seed=0), make(key, 1, 8, mean=(0.7,), seed=1)
        stored = safetensors.torch.load(safetensors.torch.save(model.state_dict()))
        other.load_state_dict(stored)
        x = images(2, 1, 8)
        with torch.no_grad():
            assert torch.equal(model.eval()(x), other.eval()(x))

    @pytest.mark.parametrize(
        ("mean", "std"), [((0.5,), (0.2,)), ((0.1, 0.2, 0.3), None), (None, (0.5, 1, 2))]
    )
    def test_normalisation_inside_equals_normalisation_outside(
        self, key: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
    ) -> None:
        x = images(3, 3, 32)
        shift = torch.tensor(mean or (0.0,)).view(-1, 1, 1)
        scale = torch.tensor(std or (1.0,)).view(-1, 1, 1)
        with torch.no_grad():
            plain = make(key, 3, 32).eval()((x - shift) / scale)
            inside = make(key, 3, 32, mean=mean, std=std).eval()(x)
        assert torch.equal(inside, plain)

    @pytest.mark.parametrize(
        ("arguments", "name"), [((0, 28, 10), "channels"), ((1, 7, 10), "size"), ((1, 28, 1), "classes")]
    )
    def test_rejects_images_it_cannot_take(self, key: str, arguments: tuple[int, ...], name: str) -> None:
        with pytest.raises(ValueError, match=f"^{name}: expected .*, got [017]$"):
            MODELS[key]().build(*arguments)

    @pytest.mark.parametrize(
        "settings",
        [{"mean": ()}, {"mean": (math.nan,)}, {"std": (0.0,)}, {"std": (1.0, -1.0)}, {"std": (math.inf,)}],
    )
    def test_rejects_such_a_normalisation(self, key: str, settings: dict[str, object]) -> None:
        (name,) = settings
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            MODELS[key](**settings)

    def test_rejects_a_normalisation_for_other_channels(self, key: str) -> None:
        with pytest.raises(ValueError, match=r"^mean: expected 1 or 3 values"):
            MODELS[key](mean=(0.5, 0.5)).build(3, 32, 10)
