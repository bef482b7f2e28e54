"""How much the checks may spend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Sizes of the checks. ``few`` is for those that send each image through the network thousands of times.

    Attributes:
        images: test images the checks look at; ``random_images`` where the network is random.
        few: images of the dearest checks.
        steps: gradient steps of an attack's path.
        targets: wrong classes tried by the targeted DLR loss.
        restarts: paths per image of the restart check, which doubles them.
        queries: answers the black-box attacks may ask for, per image.
        random_draws: points of the random search, per image.
        eot: gradients averaged per step where the network is random.
        draws: passes over which a random network's verdicts are averaged.
        inner_points: points of the active test that lie inside the ball, per image.
        samples: largest number of draws of an evolution-strategies gradient.
        use: multiplications spent on asking the network one image at a time, as it is used.
        limit_s: seconds that a check may take at least; a slow network gets longer, see ``certify``.
    """

    images: int
    random_images: int
    few: int
    steps: int
    targets: int
    restarts: int
    queries: int
    random_draws: int
    eot: int
    draws: int
    inner_points: int
    samples: int
    use: float
    limit_s: int

    @property
    def passes(self) -> int:
        """Passes with gradients that all checks take per image, about, on a network that is not random; one without
        counts as half of one.
        """
        return 40 * self.steps + self.queries + self.random_draws // 2


BUDGETS: dict[str, Budget] = {
    "quick": Budget(
        images=128,
        random_images=32,
        few=32,
        steps=30,
        targets=3,
        restarts=2,
        queries=1000,
        random_draws=1000,
        eot=4,
        draws=30,
        inner_points=199,
        samples=100,
        use=8e10,
        limit_s=300,
    ),
    "full": Budget(
        images=512,
        random_images=256,
        few=128,
        steps=100,
        targets=9,
        restarts=10,
        queries=5000,
        random_draws=10_000,
        eot=20,
        draws=100,
        inner_points=999,
        samples=1000,
        use=4e11,
        limit_s=3600,
    ),
}
