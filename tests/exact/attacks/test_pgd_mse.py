"""PGD on restoration networks whose worst input is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from attacks import PGDMse, SampleRandom, Threat
from attacks.losses import squared_error
from attacks.pgd_mse import AroundInput


def pictures(count: int = 6) -> tuple[Tensor, Tensor]:
    """Clean images, and inputs that leave [0, 1] here and there."""
    generator = torch.Generator().manual_seed(5)
    y = torch.rand(count, 1, 4, 4, generator=generator, dtype=torch.float64)
    return y + 0.3 * torch.randn(y.shape, generator=generator, dtype=torch.float64), y


def streams(count: int) -> SampleRandom:
    return SampleRandom.for_images(0, "test", range(count))


def test_on_the_identity_every_pixel_moves_further_from_its_clean_value() -> None:
    x, y = pictures()
    eps = 0.05
    # From the input itself: from elsewhere, a pixel nearer than eps to its clean value may go the other way.
    attack = PGDMse(steps=20, random_start=False)
    found = attack(nn.Identity().eval(), x, y, Threat(norm="linf", eps=eps), streams(6))
    further = torch.where(x > y, x + eps, x - eps)
    expected = further.clamp(x.clamp_max(0), x.clamp_min(1))  # nothing moves further out of the box
    torch.testing.assert_close(squared_error(found, y), squared_error(expected, y), rtol=1e-9, atol=0)
    assert (squared_error(found, y) > squared_error(x, y)).all()


def test_in_l2_it_moves_along_the_error() -> None:
    generator = torch.Generator().manual_seed(1)
    y = 0.5 + 0.1 * torch.rand(4, 1, 4, 4, generator=generator, dtype=torch.float64)
    x = y + 0.05 * torch.randn(y.shape, generator=generator, dtype=torch.float64)  # well inside the box
    found = PGDMse(steps=400, step_size=0.02)(
        nn.Identity().eval(), x, y, Threat(norm="l2", eps=0.2), streams(4)
    )
    length = (x - y).flatten(1).norm(dim=1)
    torch.testing.assert_close(squared_error(found, y), (length + 0.2) ** 2 / 16, rtol=1e-3, atol=0)
    assert ((found - x).flatten(1).norm(dim=1) <= 0.2 + 1e-9).all()


def test_it_is_never_better_than_the_input_itself() -> None:
    class Worst(nn.Module):
        """Gives the worst image for the input alone, and the clean one anywhere else."""

        def forward(self, z: Tensor) -> Tensor:
            same = (z == x).flatten(1).all(1).view(-1, 1, 1, 1)
            return torch.where(same, 1 - y, y) + 0 * z

    x, y = pictures()
    found = PGDMse(steps=3)(Worst().eval(), x, y, Threat(eps=0.1), streams(6))
    assert torch.equal(found, x)


def test_an_output_that_is_not_finite_shows() -> None:
    class Breaks(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            far = ((z - x).abs() > 0.05).flatten(1).any(1).view(-1, 1, 1, 1)
            return torch.where(far, math.nan, z)

    x, y = pictures()
    assert PGDMse(steps=4)(Breaks().eval(), x, y, Threat(eps=0.1), streams(6)).isnan().flatten(1).all(1).all()


def test_restarts_find_at_least_as_much_and_each_image_has_its_own_stream() -> None:
    class Waves(nn.Module):
        """Hills everywhere: where a path starts decides where it ends."""

        def forward(self, z: Tensor) -> Tensor:
            return torch.sin(40 * z)

    model = Waves().eval()
    x, y = pictures()
    threat = Threat(eps=0.3)
    one = PGDMse(steps=3)(model, x, y, threat, streams(6))
    more = PGDMse(steps=3, restarts=8)(model, x, y, threat, streams(6))
    errors = [squared_error(model(found), y) for found in (one, more)]
    assert (errors[1] >= errors[0]).all()
    assert (errors[1] > errors[0]).any()
    alone = PGDMse(steps=3)(model, x[2:3], y[2:3], threat, SampleRandom.for_images(0, "test", [2]))
    torch.testing.assert_close(alone, one[2:3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_ball_around_an_input_outside_the_box(norm: str) -> None:
    reach = AroundInput(norm=norm, eps=0.1)  # type: ignore[arg-type]
    x = torch.tensor([[-0.3, 0.02, 0.5, 1.2]]).view(1, 1, 2, 2)
    low = reach.project(x - 9, x)
    high = reach.project(x + 9, x)
    if norm == "linf":
        assert low.flatten().tolist() == pytest.approx([-0.3, 0.0, 0.4, 1.1])
        assert high.flatten().tolist() == pytest.approx([-0.2, 0.12, 0.6, 1.2])
    else:
        assert low.flatten().tolist() == pytest.approx([-0.3, 0.0, 0.45, 1.15])
        assert high.flatten().tolist() == pytest.approx([-0.25, 0.07, 0.55, 1.2])


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"steps": 0}, "steps"), ({"step_size": 0.0}, "step_size"), ({"restarts": 0}, "restarts"),
     ({"restarts": 2, "random_start": False}, "restarts"), ({"eot": 0}, "eot"), ({"target": "next"}, "target")],
)  # fmt: skip
def test_a_bad_setting_is_refused(settings: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        PGDMse(**settings)  # type: ignore[arg-type]


def test_bad_arguments_are_refused() -> None:
    x, y = pictures()
    with pytest.raises(ValueError, match=r"^y: expected clean images"):
        PGDMse()(nn.Identity().eval(), x, torch.zeros(6, dtype=torch.long), Threat(eps=0.1), streams(6))
    with pytest.raises(ValueError, match=r"^eps: expected a finite radius"):
        PGDMse()(nn.Identity().eval(), x, y, Threat(eps=math.inf), streams(6))
