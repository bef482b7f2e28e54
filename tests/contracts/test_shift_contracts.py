"""What holds for every shift of the table of contents."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from attacks.base import SampleRandom
from robustbench_sparse.shifts import SHIFTS, Shift

SHAPES = [(1, 28, 28), (3, 32, 32), (2, 13, 13), (1, 8, 8), (3, 9, 14)]
RESOLUTIONS = [{"size": s, "interpolation": i} for s in (14, 28, 41) for i in ("bilinear", "trigonometric")]
ALL = [
    pytest.param(key, settings, id="-".join([key, *map(str, settings.values())]))
    for key in SHIFTS
    for settings in (RESOLUTIONS if key == "resolution" else [{"severity": s} for s in (1, 3, 5)])
]


def images(count: int, *shape: int) -> Tensor:
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))
    x[0, :, : shape[1] // 2], x[0, :, shape[1] // 2 :] = 0, 1  # a hard edge: interpolation overshoots there
    return x


def streams(indices: list[int], seed: int = 0) -> SampleRandom:
    return SampleRandom.for_images(seed, "shift", indices)


def make(key: str, **settings: object) -> Shift:
    return SHIFTS[key](**({"size": 20} if key == "resolution" and "size" not in settings else {}), **settings)


@pytest.mark.parametrize("key", SHIFTS)
def test_is_a_documented_frozen_keyword_only_dataclass(key: str) -> None:
    shift = SHIFTS[key]
    assert issubclass(shift, Shift)
    assert shift.key == key
    assert shift.__doc__
    assert not shift.__doc__.startswith(f"{shift.__name__}("), "the signature that dataclass writes"
    for field in dataclasses.fields(shift):
        assert field.kw_only
        assert f"{field.name}:" in shift.__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(key).severity = 2


@pytest.mark.parametrize(("key", "settings"), ALL)
@pytest.mark.parametrize("shape", SHAPES)
def test_gives_images_in_the_range_of_the_size_it_says(
    key: str, settings: dict[str, object], shape: tuple[int, ...]
) -> None:
    shift, x = make(key, **settings), images(3, *shape)
    kept = x.clone()
    out = shift(x, streams([5, 6, 7]))
    assert torch.equal(x, kept), "the images given stay as they are"
    assert out.dtype == x.dtype
    assert out.shape == (3, shape[0], *shift.shape(*shape[1:]))
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(shift(x[:0], streams([])), out[:0])


@pytest.mark.parametrize(("key", "settings"), ALL)
def test_an_image_fares_alike_in_every_batch(key: str, settings: dict[str, object]) -> None:
    shift, x = make(key, **settings), images(7, 3, 17, 17)
    whole = shift(x, streams(list(range(7))))
    turned = shift(x.flip(0), streams(list(range(6, -1, -1)))).flip(0)
    parts = torch.cat([shift(x[i : i + 2], streams(list(range(i, min(i + 2, 7))))) for i in range(0, 7, 2)])
    assert torch.equal(whole, turned)
    assert torch.equal(whole, parts)
    memory = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(whole, shift(memory, streams(list(range(7)))))


@pytest.mark.parametrize("key", SHIFTS)
def test_draws_come_from_the_images_streams_alone(key: str) -> None:
    shift, x = make(key), images(2, 1, 28, 28)
    state = torch.get_rng_state()
    first, again = (shift(x, streams([3, 4])) for _ in range(2))
    other = shift(x, streams([3, 4], seed=1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (not key.endswith("noise"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("key", SHIFTS)
@pytest.mark.parametrize(
    ("x", "count", "text"),
    [
        (torch.rand(2, 1, 9, 9) + 1, 2, "x: expected values in"),
        (torch.rand(2, 1, 9, 9) - 1, 2, "x: expected values in"),
        (torch.rand(2, 9, 9), 2, "x: expected float32"),
        (torch.zeros(2, 1, 9, 9, dtype=torch.uint8), 2, "x: expected float32"),
        (torch.rand(2, 1, 9, 9), 1, "random: expected 2 random streams, got 1"),
    ],
)
def test_rejects_other_images(key: str, x: Tensor, count: int, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}"):
        make(key)(x, streams(list(range(count))))


@pytest.mark.parametrize(
    ("key", "settings", "text"),
    [
        *[(key, {"severity": s}, "severity") for key in SHIFTS if key != "resolution" for s in (0, 6, 7, -1)],
        ("resolution", {"size": 0}, "size"),
        ("resolution", {"size": 5000}, "size"),
        ("resolution", {"interpolation": "cubic"}, "interpolation"),
    ],
)
def test_rejects_settings(key: str, settings: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}: expected"):
        make(key, **settings)
