"""Degradations, what is measured, and which draws stay the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from attacks.base import GeneratorNoise
from robustbench_sparse.data.augment import Augment
from robustbench_sparse.data.digits import Digits
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.streams import Streams
from robustbench_sparse.tasks import Classify, Restore
from robustbench_sparse.tasks.inputs import fixed_pairs
from robustbench_sparse.tasks.restore import blurred
from robustbench_sparse.training.minibatches import Minibatches


def noise(seed: int = 0) -> GeneratorNoise:
    return GeneratorNoise(torch.Generator().manual_seed(seed))


def pictures(size: int = 16) -> Tensor:
    return torch.rand(3, 2, size, size, generator=torch.Generator().manual_seed(2))


def test_a_blur_spreads_one_pixel_as_the_gaussian_of_sum_one() -> None:
    x = torch.zeros(1, 1, 15, 15)
    x[0, 0, 7, 7] = 1
    out = blurred(x, 9, 5.0)[0, 0]
    place = torch.arange(-4, 5, dtype=torch.float64)
    line = torch.exp(-(place**2) / 50)
    kernel = line[:, None] * line / line.sum() ** 2
    torch.testing.assert_close(out[3:12, 3:12], kernel.float())
    assert out.sum().item() == pytest.approx(1)


def test_inside_the_image_it_is_the_librarys_blur_and_at_the_border_zeros_come_in() -> None:
    x = pictures()
    ours, theirs = blurred(x, 5, 1.5), gaussian_blur(x, [5, 5], [1.5, 1.5])
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2])
    white = blurred(torch.ones(1, 1, 9, 9), 3, 1.0)
    assert white[0, 0, 4, 4].item() == pytest.approx(1)
    assert white[0, 0, 0, 0].item() < 0.6


def test_the_noise_has_the_deviation_asked_for_and_leaves_the_box_unless_clipped() -> None:
    x = torch.zeros(64, 1, 28, 28)
    out, clean = Restore(noise=0.05).pair(x, torch.zeros(64), noise())
    assert torch.equal(clean, x)
    # 50 176 draws: the deviation's own standard error is 0.05 / sqrt(2 n) = 1.6e-4.
    assert out.std().item() == pytest.approx(0.05, abs=8e-4)
    assert out.min() < 0
    clipped, _ = Restore(noise=0.05, clip=True).pair(x, torch.zeros(64), noise())
    assert torch.equal(clipped, out.clamp(0, 1))


def test_loss_and_measure_are_the_squared_error() -> None:
    task = Restore()
    a, b = torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert task.measure(a, b).tolist() == [1.0, 9.0]
    assert task.loss(a, b).item() == 5.0
    assert task.score(0.25) == -0.25
    assert task.shown(0.25) == 0.25
    assert task.classes(10) is None


def test_classification_is_what_it_was() -> None:
    task = Classify()
    logits, y = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1])
    assert task.measure(logits, y).tolist() == [True, False]
    assert task.loss(logits, y).item() == torch.nn.functional.cross_entropy(logits, y).item()
    assert (task.score(0.5), task.shown(0.5), task.classes(10)) == (0.5, 50.0, 10)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"noise": -0.1}, "noise"), ({"noise": math.inf}, "noise"), ({"blur_size": 4}, "blur_size"),
     ({"blur_size": 0}, "blur_size"), ({"blur_sigma": -1.0}, "blur_sigma"), ({"blur_sigma": 0.0}, "blur_sigma")],
)  # fmt: skip
def test_a_bad_setting_is_refused(settings: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        Restore(**settings)  # type: ignore[arg-type]


def data() -> PreparedData:
    return PreparedData(Digits().load(), validation=100, train_limit=300, test_limit=40)


def epochs(task: Restore, streams: Streams, count: int) -> list[Tensor]:
    batches = Minibatches(task, data(), streams)
    out = []
    for _ in range(count):
        pairs = list(batches.epoch(Augment(), 64))
        # Told apart by their clean images, whatever the order.
        x, y = (torch.cat(part) for part in zip(*pairs, strict=True))
        order = sorted(range(len(y)), key=lambda i: y[i].flatten().tolist())
        out.append((x - y)[order])
    return out


def test_noise_is_drawn_anew_for_every_epoch_or_once() -> None:
    fresh = epochs(Restore(noise=0.1), Streams(0), 2)
    once = epochs(Restore(noise=0.1, training_noise="once"), Streams(0), 2)
    assert not torch.equal(*fresh)
    torch.testing.assert_close(*once, rtol=0, atol=1e-6)
    assert once[0].std().item() == pytest.approx(0.1, rel=0.02)
    other = epochs(Restore(noise=0.1, training_noise="once"), Streams(1), 1)
    assert not torch.allclose(once[0], other[0])


def test_a_task_that_draws_nothing_makes_no_stream() -> None:
    streams = Streams(0)
    list(Minibatches(Classify(), data(), streams).epoch(Augment(), 64))
    assert set(streams.state_dict()) == {"data", "augment"} or set(streams.state_dict()) == {"data"}


def test_test_inputs_are_the_same_in_every_batch_and_run() -> None:
    task, prepared = Restore(noise=0.1, blur_size=3), data()
    one = [torch.cat(part) for part in zip(*fixed_pairs(task, prepared, "test", 7), strict=True)]
    two = [torch.cat(part) for part in zip(*fixed_pairs(task, prepared, "test", 40), strict=True)]
    assert torch.equal(one[2], two[2])
    torch.testing.assert_close(one[0], two[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(one[1], two[1], rtol=0, atol=0)
    few = PreparedData(Digits().load(), validation=50, test_limit=10)
    for x, _, index in fixed_pairs(task, few, "test", 10):
        for image, position in zip(x, index.tolist(), strict=True):
            torch.testing.assert_close(image, one[0][one[2].tolist().index(position)], rtol=0, atol=1e-6)
