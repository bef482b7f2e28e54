"""Rotations and translations of shapes whose breaking angle and shift are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from attacks.base import Threat
from attacks.geometric import Geometric, transform
from tests.helpers.attack_models import Shaky, digits_net, streams

SIZE, BREAKS = 33, 11.3
ANY = Threat(eps=8 / 255)  # geometric attacks know nothing of eps


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centroid (B, 2) to the right and downwards, and the two entries of the covariance that tell the angle."""
    c = torch.arange(x.shape[-1], dtype=x.dtype) - (x.shape[-1] - 1) / 2
    mass = x.sum((1, 2, 3))
    right, down = (x * c).sum((1, 2, 3)) / mass, (x * c[:, None]).sum((1, 2, 3)) / mass
    u, v = c - right[:, None], c - down[:, None]
    flat = x[:, 0]
    xx = (flat * u[:, None, :] ** 2).sum((1, 2)) / mass
    yy = (flat * v[:, :, None] ** 2).sum((1, 2)) / mass
    xy = (flat * u[:, None, :] * v[:, :, None]).sum((1, 2)) / mass
    return torch.stack([right, down], 1), xx - yy, 2 * xy


class Tilt(nn.Module):
    """Class 1 when the shape's long axis is tilted by more than BREAKS degrees, class 0 otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        _, along, across = moments(x)
        phi = math.radians(2 * BREAKS)
        tilted = across.abs() * math.cos(phi) - along * math.sin(phi)
        return torch.stack([torch.zeros_like(tilted), tilted], 1)


class FarOff(nn.Module):
    """Class 1 when the shape's centre lies more than 2.2 pixels right of the middle."""

    def forward(self, x: Tensor) -> Tensor:
        right = moments(x)[0][:, 0] - 2.2
        return torch.stack([torch.zeros_like(right), right], 1)


def bar() -> tuple[Tensor, Tensor]:
    """A bar of 21 x 5 pixels, lying in the middle; its class is 0."""
    x = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.float64)
    x[:, :, 14:19, 6:27] = 1
    return x, torch.zeros(1, dtype=torch.int64)


def angle_of(x: Tensor) -> float:
    """Degrees, counter-clockwise as seen on a screen."""
    _, along, across = moments(x)
    return -math.degrees(math.atan2(across.item(), along.item())) / 2


def shifted(x: Tensor, right: float, down: float, border: str = "zeros") -> Tensor:
    n = len(x)
    return transform(x, torch.zeros(n), torch.tensor([[right, down]] * n), border)  # type: ignore[arg-type]


def test_a_quarter_turn_and_whole_shifts_move_pixels_only() -> None:
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    right_angle = torch.full((2,), 90.0, dtype=torch.float64)
    none = torch.zeros(2, 2, dtype=torch.float64)
    assert (transform(x, right_angle, none, "zeros") - x.rot90(1, (2, 3))).abs().max() < 1e-12
    # First turned, then moved.
    both = transform(x, right_angle, none + torch.tensor([2.0, 0.0]), "zeros")
    assert (both[..., 2:] - x.rot90(1, (2, 3))[..., :-2]).abs().max() < 1e-12
    moved = shifted(x, 2, -1)
    assert (moved[:, :, :-1, 2:] - x[:, :, 1:, :-2]).abs().max() < 1e-12
    assert moved[:, :, -1].abs().max() < 1e-12
    assert moved[..., :2].abs().max() < 1e-12


@pytest.mark.parametrize(("border", "source"), [("border", [0, 0]), ("reflection", [1, 0])])
def test_what_moves_in_from_outside(border: str, source: list[int]) -> None:
    x = torch.rand(1, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (shifted(x, 2, 0, border)[..., :2] - x[..., source]).abs().max() < 1e-12


def test_turns_on_images_that_are_not_square() -> None:
    x = torch.zeros(1, 1, 33, 45, dtype=torch.float64)
    x[:, :, 16, 10:35] = 1  # 25 pixels across the middle
    turned = transform(x, torch.tensor([90.0], dtype=torch.float64), torch.zeros(1, 2), "zeros")
    assert (turned[0, 0, 4:29, 22] - 1).abs().max() < 1e-9
    assert turned.sum().item() == pytest.approx(25)


@pytest.mark.parametrize("angle", [-30.0, -7.0, 13.0, 30.0])
def test_shapes_turn_by_the_angle_counter_clockwise(angle: float) -> None:
    x, _ = bar()
    turned = transform(x, torch.tensor([angle], dtype=torch.float64), torch.zeros(1, 2), "zeros")
    assert abs(angle_of(turned) - angle) < 0.2


def test_the_breaking_angle_is_found_within_one_step_of_the_grid() -> None:
    x, y = bar()
    net, found = Tilt().eval(), []
    for reach in range(1, 31):
        attack = Geometric(max_angle=reach, angles=2 * reach + 1, max_shift=0)  # steps of 1 degree
        found.append(net(attack(net, x, y, ANY, streams(1))).argmax(1).item() == 1)
    smallest = found.index(True) + 1
    assert 0 <= smallest - BREAKS < 1
    assert all(found[smallest - 1 :])


@pytest.mark.parametrize("reach", [4.0, 10.0])
def test_the_worst_margin_is_kept_where_nothing_breaks(reach: float) -> None:
    x, y = bar()
    net = Tilt().eval()
    x_adv = Geometric(max_angle=reach)(net, x, y, ANY, streams(1))
    assert net(x_adv).argmax(1).item() == 0
    assert net(x_adv)[0, 1] == max(net(seen)[0, 1] for seen in net.seen[:-1])
    assert abs(abs(angle_of(x_adv)) - reach) < 0.3


@pytest.mark.parametrize(("reach", "breaks"), [(2.0, False), (3.0, True)])
def test_shifts_reach_as_far_as_they_say(reach: float, breaks: bool) -> None:
    x, y = bar()
    x_adv = Geometric(max_angle=0, max_shift=reach)(FarOff().eval(), x, y, ANY, streams(1))
    assert (FarOff()(x_adv).argmax(1) == 1).item() == breaks
    assert moments(x_adv)[0][0, 0].item() == pytest.approx(reach, abs=1e-9)


def test_random_search_finds_the_angle_with_enough_draws_and_keeps_within_its_ranges() -> None:
    x, y = bar()
    net = Tilt().eval()
    many = x.expand(20, -1, -1, -1), y.expand(20)
    # A draw of 30 degrees at most breaks with probability 1 - 11.3 / 30, ten of them almost surely.
    x_adv = Geometric(search="random")(net, *many, ANY, streams(20))
    assert (net(x_adv).argmax(1) == 1).all()
    assert len({a.numpy().tobytes() for a in x_adv}) == 20
    for mild in (Geometric(search="random", max_angle=10, draws=30), Geometric(search="random", max_shift=2)):
        net.seen.clear()
        mild(net, *many, ANY, streams(20))
        for seen in net.seen:
            assert max(abs(angle_of(s[None])) for s in seen) < mild.max_angle + 0.5
            assert moments(seen)[0].abs().max() < mild.max_shift + 0.1


@pytest.mark.parametrize("search", ["grid", "random"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranges_of_zero_give_the_clean_image_to_the_bit(search: str, dtype: torch.dtype) -> None:
    x = torch.rand(4, 1, SIZE, SIZE, dtype=dtype, generator=torch.Generator().manual_seed(0))
    attack = Geometric(search=search, max_angle=0, max_shift=0)  # type: ignore[arg-type]
    x_adv = attack(Tilt().eval(), x, torch.zeros(4, dtype=torch.int64), ANY, streams(4))
    assert torch.equal(x_adv, x)


def test_the_grid_is_the_papers_and_holds_no_transformation_twice() -> None:
    grid = Geometric().grid()
    assert len(grid) == len(set(grid)) == 31 * 5 * 5 - 1
    assert {a for a, _, _ in grid} == {float(2 * i) for i in range(-15, 16)}
    assert {u for _, u, _ in grid} == {-3.0, -1.5, 0.0, 1.5, 3.0}
    assert Geometric().queries == 775
    assert Geometric(search="random").queries == 11
    assert Geometric().passes == 0


def test_a_digits_network_is_fooled_more_by_the_grid_than_by_a_few_draws() -> None:
    net, x, y = digits_net()
    left = {}
    for search in ("random", "grid"):
        attack = Geometric(search=search, max_shift=1, angles=7, shifts=3)  # type: ignore[arg-type]
        x_adv = attack(net, x, y, ANY, streams(len(x)))
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        left[search] = (net(x_adv).argmax(1) == y).double().mean().item()
    assert left["grid"] < left["random"] < 0.9


@pytest.mark.parametrize("search", ["grid", "random"])
def test_result_depends_neither_on_the_batch_nor_on_the_global_generator(search: str) -> None:
    net, x, y = digits_net()
    x, y = x[:10], y[:10]
    attack = Geometric(search=search, max_shift=1, angles=3, shifts=3)  # type: ignore[arg-type]
    before = torch.get_rng_state()
    together = attack(net, x, y, ANY, streams(10))
    for i in range(10):
        alone = attack(net, x[i : i + 1], y[i : i + 1], ANY, streams(10).subset(torch.tensor([i])))
        assert (alone - together[i]).abs().max() < 1e-12
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("one_pass_at_a_time")
def test_no_lucky_miss_ends_the_search_on_a_random_network() -> None:
    net, x, y = digits_net()
    shaky = Shaky(net).eval()
    attack = Geometric(search="random", max_shift=1, draws=4, eot=3)
    attack(shaky, x[:20], y[:20], ANY, streams(20))
    assert shaky.calls == attack.queries == 15


def test_a_network_that_breaks_when_the_image_moves_has_not_withstood() -> None:
    class Breaks(Tilt):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return torch.where((angles_of(x).abs() < 1e-9)[:, None], out, math.nan)

    def angles_of(x: Tensor) -> Tensor:
        return moments(x)[2]

    x, y = bar()
    net = Breaks().eval()
    assert net(x).isfinite().all()
    assert not net(Geometric(max_angle=5)(net, x, y, ANY, streams(1))).isfinite().all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("search", "all"),
        ("max_angle", 181.0),
        ("max_angle", math.nan),
        ("max_shift", -1.0),
        ("max_shift", math.inf),
        ("angles", 0),
        ("shifts", 0),
        ("draws", 0),
        ("border", "mirror"),
        ("eot", 0),
    ],
)
def test_an_invalid_setting_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        Geometric(**{name: value})  # type: ignore[arg-type]
