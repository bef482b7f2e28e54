"""Normal numbers out of Philox counters: the published vectors, the law of the numbers, who shares them with whom."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from attacks.base import GeneratorNoise, RandomModule, SampleRandom, Silence
from attacks.philox import normals, philox, table, words
from defenses.robust.draws import BatchRandom
from tests.helpers.attack_models import streams

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
ONES = 0xFFFFFFFF
COUNT = 200_000


def some(images: int = 5, count: int = COUNT, seed: int = 0) -> Tensor:
    keys = torch.randint(2**62, (images,), generator=torch.Generator().manual_seed(seed))
    return normals(keys, torch.zeros_like(keys), count).double()


@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (*PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_blocks_are_those_of_random123(counter: tuple[int], key: tuple[int], block: tuple[int]) -> None:
    found = philox(tuple(torch.tensor(c) for c in counter), tuple(torch.tensor(k) for k in key))
    assert [int(word) for word in found] == list(block)


def test_words_are_the_blocks_of_place_and_number() -> None:
    key, place = 0x299F31D0A4093822, 7
    found = words(torch.tensor([0, key]), torch.tensor([0, place]), 3)
    assert found.shape == (2, 4, 3)
    block = philox(tuple(map(torch.tensor, (2, place, 0, 0))), tuple(map(torch.tensor, PI[1])))
    assert [int(w) & ONES for w in found[1, :, 2]] == [int(w) for w in block]


def test_the_numbers_are_quantiles_of_the_normal_law() -> None:
    z = table(torch.device("cpu")).double()
    middle = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    assert (z.diff() > 0).all()
    assert (torch.special.ndtr(z) - middle).abs().max() < 2.4e-5 - 0.5 / 65536
    assert (z + z.flip(0)).abs().max() == 0  # so the mean and every odd moment is 0
    assert z.square().mean().item() == pytest.approx(1, abs=1e-7)
    assert z.pow(4).mean().item() == pytest.approx(2.99924, abs=1e-4)
    assert z[-1].item() == pytest.approx(4.325, abs=1e-3)


def test_moments_and_law_of_what_is_drawn() -> None:
    z = some().flatten()
    n = len(z)
    # Standard errors of the first four moments of N(0, 1): of mean, variance, third and fourth moment.
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(z.pow(power).mean().item() - expected) < 4 * math.sqrt(variance / n)
    assert scipy.stats.kstest(z.numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("lag", [1, 2, 4, 8, COUNT // 8, COUNT // 4, COUNT // 2])
def test_numbers_of_an_image_know_nothing_of_each_other(lag: int) -> None:
    z = some(1)[0]
    a, b = z[:-lag], z[lag:]
    for f in (lambda t: t, lambda t: t.square() - 1, torch.sign):
        assert abs(torch.corrcoef(torch.stack([f(a), f(b)]))[0, 1].item()) < 4.5 / math.sqrt(len(a))


def near() -> dict[str, Tensor]:
    """Numbers (4, COUNT) of keys and places that differ in a bit, and of this package's images, passes and layers."""
    bits = (torch.tensor([0, 1, 1 << 32, 0]), torch.tensor([0, 0, 0, 1]))
    batch, one = BatchRandom(torch.Generator().manual_seed(0)), streams(1)
    parts = one.branches(4)
    assert parts is not None
    several = {
        "passes": [part.counters(1) for part in parts],
        "layers, members": [one.counters(1) for _ in range(4)],
        "layers in training": [batch.counters(1) for _ in range(4)],
    }
    together = {"bits": bits, "images in training": batch.counters(4), "images": streams(4).counters(4)}
    found = {name: [normals(*one, COUNT)] for name, one in together.items()}
    found |= {name: [normals(*one, COUNT) for one in each] for name, each in several.items()}
    return {name: torch.cat(rows).double() for name, rows in found.items()}


def test_streams_know_nothing_of_each_other() -> None:
    for name, z in near().items():
        for values in (z, z.square()):
            worst = (torch.corrcoef(values) - torch.eye(4)).abs().max().item()
            assert worst < 4.5 / math.sqrt(COUNT), name


def test_an_image_gets_the_same_numbers_whoever_is_beside_it() -> None:
    together = normals(*streams(6).counters(6), 100)
    alone = normals(*streams(6).subset(torch.tensor([4, 1])).counters(2), 100)
    assert torch.equal(alone, together[[4, 1]])


def test_any_count_of_numbers() -> None:
    keys = torch.tensor([5])
    assert normals(keys, keys, 13).shape == (1, 13)
    assert torch.equal(normals(keys, keys, 13), normals(keys, keys, 16)[:, :13])  # both out of two blocks


def test_sources_hand_out_other_counters_at_every_call() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = RandomModule()
    for source in (streams(3), BatchRandom(generator), GeneratorNoise(generator), None):
        layer.noise_source = source
        first, second = layer.counters(3), layer.counters(3)
        assert first is not None
        assert second is not None
        assert (first[0] != second[0]).all()
        assert len(set(zip(*map(Tensor.tolist, first), strict=True))) == 3
    layer.noise_source = Silence()
    assert layer.counters(3) is None


def test_counters_are_of_as_many_images_as_there_are_streams() -> None:
    with pytest.raises(ValueError, match="3 images"):
        SampleRandom.for_images(0, "x", range(3)).counters(2)
