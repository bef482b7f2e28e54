"""Splits, epochs and augmentation against naive references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from robustbench_sparse.data import Augment, Dataset, PreparedData


def numbered(train: int = 50, test: int = 30) -> Dataset:
    """Every image has its own value: its number, in the test part 100 more."""
    return Dataset(
        name="numbered",
        label="Numbered",
        train_x=torch.arange(train, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 3, 3).contiguous(),
        train_y=torch.arange(train) % 5,
        test_x=(100 + torch.arange(test)).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 3, 3).contiguous(),
        test_y=torch.arange(test) % 5,
        classes=("a", "b", "c", "d", "e"),
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(x: Tensor) -> list[int]:
    return [round(v) for v in (x[:, 0, 0, 0] * 255).tolist()]


def test_training_and_validation_are_disjoint_and_complete() -> None:
    data = PreparedData(numbered(), validation=20)
    train, val = data.indices["train"].tolist(), data.indices["val"].tolist()
    assert (len(train), len(val)) == (30, 20)
    assert sorted(train + val) == list(range(50))
    assert (train, val) == (sorted(train), sorted(val))
    assert val != list(range(20)), "held out at random"
    for split, indices in (("train", train), ("val", val)):
        x, y = data.gather(split, torch.arange(len(indices)))
        assert numbers(x) == indices
        assert y.tolist() == [i % 5 for i in indices]


def test_the_split_is_fixed() -> None:
    # Stored results name images by number: the split may never change.
    data = PreparedData(numbered(), validation=5, test_limit=5)
    assert data.indices["val"].tolist() == [12, 13, 25, 32, 47]
    assert data.test_indices.tolist() == [7, 8, 9, 10, 24]
    torch.manual_seed(5)
    np.random.seed(5)
    again = PreparedData(numbered(), validation=5, test_limit=5)
    assert all(torch.equal(data.indices[s], again.indices[s]) for s in data.indices)


def test_limits_keep_nested_subsets_and_the_validation_part() -> None:
    parts = [PreparedData(numbered(), validation=10, train_limit=n, test_limit=n) for n in (4, 9, 99)]
    small, middle, large = ([set(p.indices[s].tolist()) for s in ("train", "val", "test")] for p in parts)
    assert [len(s) for s in small] == [4, 10, 4]
    assert [len(s) for s in middle] == [9, 10, 9]
    assert [len(s) for s in large] == [40, 10, 30]
    assert small[0] < middle[0] < large[0]
    assert small[1] == middle[1] == large[1]
    assert small[2] < middle[2] < large[2]


def test_test_indices_are_those_of_the_test_set() -> None:
    data = PreparedData(numbered(), validation=0, test_limit=7)
    got = [(numbers(x), y.tolist(), i.tolist()) for x, y, i in data.ordered("test", 3)]
    assert [len(values) for values, _, _ in got] == [3, 3, 1]
    seen = [n for values, _, _ in got for n in values]
    assert seen == [100 + i for i in data.test_indices.tolist()]
    assert [i for _, _, chunk in got for i in chunk] == data.test_indices.tolist()
    assert [label for _, labels, _ in got for label in labels] == [i % 5 for i in data.test_indices.tolist()]
    assert PreparedData(numbered(), validation=0).test_indices.tolist() == list(range(30))


def test_an_epoch_has_the_order_of_randperm() -> None:
    data = PreparedData(numbered(), validation=9)
    order = torch.randperm(41, generator=generator(3))
    batches = list(data.batches(generator(3), 8))
    assert len(batches) == data.steps_per_epoch(8) == 6
    assert [len(y) for _, y in batches] == [8, 8, 8, 8, 8, 1]
    assert [n for x, _ in batches for n in numbers(x)] == data.indices["train"][order].tolist()
    assert [n for _, y in batches for n in y.tolist()] == (data.indices["train"][order] % 5).tolist()


def test_the_order_is_drawn_at_once() -> None:
    data, random = PreparedData(numbered(), validation=0), generator(1)
    data.batches(random, 10)
    expected = generator(1)
    torch.randperm(50, generator=expected)
    assert torch.equal(random.get_state(), expected.get_state())


def test_images_are_divided_by_255() -> None:
    x, _ = PreparedData(numbered(), validation=0).gather("test", torch.tensor([3]))
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.full((1, 2, 3, 3), 103) / 255)


def test_images_for_defenses_come_without_repetition() -> None:
    data = PreparedData(numbered(), validation=12)
    val = data.indices["val"].tolist()
    drawn = numbers(data.images("val", 7, generator()))
    assert len(set(drawn)) == 7
    assert set(drawn) <= set(val)
    assert numbers(data.images("val", 7, generator())) == drawn
    assert numbers(data.images("val", 7, generator(1))) != drawn
    more = numbers(data.images("val", 30, generator()))
    assert sorted(more[:12]) == sorted(more[12:24]) == val
    assert data.images("train", 5, generator()).shape == (5, 2, 3, 3)


def test_images_for_defenses_are_never_of_the_test_part() -> None:
    data = PreparedData(numbered(), validation=0)
    with pytest.raises(ValueError, match=r"^split: expected 'train' or 'val', got 'test'$"):
        data.images("test", 1, generator())
    with pytest.raises(
        ValueError, match=r"^split: expected a part with images \(validation > 0\), got 'val'$"
    ):
        data.images("val", 1, generator())


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"validation": 50}, "validation"),
        ({"validation": -1}, "validation"),
        ({"validation": 0, "train_limit": 0}, "train_limit"),
        ({"validation": 0, "test_limit": 0}, "test_limit"),
    ],
)
def test_prepared_data_rejects(settings: dict[str, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        PreparedData(numbered(), **settings)


# Augmentation --------------------------------------------------------------------------------------------


def naive(x: Tensor, crop: int, flip: bool, random: torch.Generator) -> Tensor:
    """One image after the other, with slices."""
    batch, channels, height, width = x.shape
    offsets = (
        torch.randint(2 * crop + 1, (2, batch), generator=random) if crop else torch.zeros(2, batch).long()
    )
    mirrored = (torch.rand(batch, generator=random) < 0.5) if flip else torch.zeros(batch, dtype=torch.bool)
    out = []
    for image, top, left, mirror in zip(x, *offsets.tolist(), mirrored.tolist(), strict=True):
        padded = torch.zeros(channels, height + 2 * crop, width + 2 * crop, dtype=x.dtype)
        padded[:, crop : crop + height, crop : crop + width] = image
        image = padded[:, top : top + height, left : left + width]
        out.append(image.flip(2) if mirror else image)
    return torch.stack(out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize(("crop", "flip"), [(4, True), (4, False), (1, True), (0, True), (9, True)])
def test_augmentation_equals_one_image_after_the_other(crop: int, flip: bool, dtype: torch.dtype) -> None:
    x = torch.randint(1, 256, (40, 3, 6, 7), generator=generator(9)).to(dtype)
    kept, random, other = x.clone(), generator(2), generator(2)
    for _ in range(3):
        got = Augment(crop=crop, flip=flip)(x, random)
        assert torch.equal(got, naive(x, crop, flip, other))
        assert got.dtype == dtype
        assert not torch.equal(got, x)
    assert torch.equal(x, kept)
    assert torch.equal(random.get_state(), other.get_state())


def test_augmentation_of_another_memory_format_is_the_same() -> None:
    x = torch.rand(5, 3, 6, 6, generator=generator())
    augment = Augment(crop=2, flip=True)
    strided = x.to(memory_format=torch.channels_last)
    assert torch.equal(augment(strided, generator()), augment(x, generator()))


def test_augmentation_off_returns_its_argument_and_draws_nothing() -> None:
    x, random = torch.rand(3, 1, 4, 4), generator()
    before = random.get_state()
    assert Augment()(x, random) is x
    assert torch.equal(random.get_state(), before)


def test_augmentation_uses_every_offset_and_both_sides_equally_often() -> None:
    x = torch.zeros(4000, 1, 5, 5)
    x[:, 0, 2, 2] = 1
    x = Augment(crop=1)(x, generator())
    rows, columns = x.sum((1, 3)).argmax(1), x.sum((1, 2)).argmax(1)
    for places in (rows, columns):
        counts = places.bincount(minlength=5).double()
        assert counts[[0, 4]].sum() == 0
        # Each of three places has a share of 1/3; five standard deviations are allowed.
        assert ((counts[1:4] - 4000 / 3).abs() < 5 * (4000 * 2 / 9) ** 0.5).all()
    y = torch.zeros(4000, 1, 1, 2)
    y[..., 0] = 1
    flipped = Augment(flip=True)(y, generator())[..., 1].sum().item()
    assert abs(flipped - 2000) < 5 * 1000**0.5


def test_augmentation_rejects() -> None:
    with pytest.raises(ValueError, match=r"^crop: expected an integer >= 0, got -1$"):
        Augment(crop=-1)
