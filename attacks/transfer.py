"""Transfer: adversarials made on another network (Papernot, McDaniel, Goodfellow 2016,
https://arxiv.org/abs/1605.07277; as a check of gradient masking, Carlini et al. 2019, https://arxiv.org/abs/1902.06705).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from attacks.base import Loss, NoiseOff, SampleRandom, Threat, check, is_stochastic, logits_of
from attacks.iterate import Best
from attacks.losses import LOSSES, loss_towards
from attacks.pgd import PGD

NOISE_OFF = "noise_off"


@dataclass(frozen=True, kw_only=True)
class Transfer(PGD):
    """PGD with momentum on another network, the source; of several paths, the end that fools the attacked one most.

    The paths do not stop at the first point that fools the source: what goes deep there is likelier to fool another
    network, too. The attacked network is only asked for its answers, once per path.

    Further settings (``target``, ``reference``, ``steps``, ``step_size``, ``loss``, ``eot``, ``random_start``) are
    those of :class:`attacks.pgd.PGD`; ``keep`` and ``early_stop`` are unused.

    Args:
        source: ``noise_off``, the attacked network itself with its noise off; in a benchmark also the label of another
            run of it, such as the undefended twin or the dense parent, or a run's folder.
        restarts: paths per image; every other one ascends the margin in place of ``loss``.
        momentum: decay of the accumulated gradients (Dong et al. 2018, https://arxiv.org/abs/1710.06081).

    Attributes:
        surrogate: the source itself, where ``source`` names another network; set by ``on``.
    """

    source: str = NOISE_OFF
    steps: int = 50
    restarts: int = 2
    momentum: float = 1.0
    surrogate: nn.Module | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.source != "", "source", "noise_off, the label of a run or a run's folder", self.source)
        check(self.loss in LOSSES, "loss", " or ".join(LOSSES), self.loss)

    def on(self, source: nn.Module) -> Transfer:
        """This attack with its adversarials made on a network in eval mode."""
        bound = replace(self)
        object.__setattr__(bound, "surrogate", source)
        return bound

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image.

        Raises:
            ValueError: for a source that has not been set by ``on``.
        """
        source = NoiseOff(model) if self.source == NOISE_OFF else self.surrogate
        if source is None:
            raise ValueError(f"source: expected a network set by on(), got only its name {self.source!r}")
        goal, towards = self.aim(model, x, y, random, self.eot)
        best, rows = Best(x), torch.arange(len(x), device=x.device)
        margin: Loss = loss_towards("margin", towards)
        for path in range(self.restarts):
            climb = PGD(
                steps=self.steps,
                step_size=self.step_size,
                loss="margin" if path % 2 else self.loss,
                eot=self.eot,
                momentum=self.momentum,
                random_start=self.random_start,
                keep="last",
                target="given" if towards else "none",
            )
            streams = random.subset(rows)
            point = climb(source, x[rows], goal[rows], threat, streams)
            with torch.no_grad():
                value = margin(logits_of(model, point, streams, self.eot), goal[rows])
            best.update(rows, point, value)
            if not is_stochastic(model):
                rows = rows[~best.fooled[rows]]
            if len(rows) == 0:
                break
        return best.result()
