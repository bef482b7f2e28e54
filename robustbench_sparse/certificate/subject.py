"""The network under examination: what the checks may ask of it, and every adversarial they find on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from attacks.apgd import APGD
from attacks.base import (
    Attack,
    Loss,
    SampleRandom,
    SeesCopies,
    Threat,
    check_candidate,
    input_gradient,
    is_stochastic,
    noise_from,
)
from attacks.losses import LOSSES
from attacks.pgd import PGD
from attacks.square import Square
from robustbench_sparse.certificate.budget import Budget
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.engine.fast import FastNetwork, confirmed, logits_in_parts
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.limits import OutOfTime
from robustbench_sparse.foundation.paired import interval
from robustbench_sparse.judging.fresh import Fresh
from robustbench_sparse.judging.judge import inside

T = TypeVar("T")


@dataclass(frozen=True)
class Attacked:
    """What an attack within a check came to.

    Attributes:
        candidate: the images judged, inside the attack's ball and box, (R, C, H, W).
        correct: share of draws in which the network itself classifies them correctly, in [0, 1], (R,).
    """

    candidate: Tensor
    correct: Tensor

    @property
    def accuracy(self) -> float:
        """Mean of ``correct``."""
        return self.correct.mean().item()


class NoGradients(UserError):
    """The network gives no gradient that an attack could follow."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What is known of the row beside its network; every part may be missing for a foreign network.

    Attributes:
        folder: the run's folder.
        weights: the file that holds the judged weights.
        plans: the benchmark's attacks.
        outcomes: their tables (of the whole test set) by label, ``clean`` too.
        twin: the undefended network of the same architecture, trained alike; ``parent`` the dense one that a
            sparse network was made like. Each with the name of its row.
        undefended: the row has no defense: it is its own twin.
        claims: what the row claims of its sparsity: the content of ``sparsity.json``.
        seeds: seeds of the benchmark.
        images: where images that are no test images come from.
        data: positions and hashes of what was trained and selected on; see ``seeds_and_data.DataFacts``.
    """

    folder: Path | None = None
    weights: Path | None = None
    plans: Sequence[AttackPlan] = ()
    outcomes: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    twin: tuple[str, nn.Module] | None = None
    parent: tuple[str, nn.Module] | None = None
    undefended: bool = False
    claims: Mapping[str, Any] | None = None
    seeds: int = 1
    images: PreparedData | None = None
    data: Any = None


class Subject:
    """A network and the images it is examined on.

    Args:
        model: the deployed network in eval mode, on the images' device.
        x: images (n, C, H, W) in [0, 1].
        y: their labels (n,).
        index: their positions in the data set (n,), on the CPU.
        threat: the benchmark's.
        classes: number of classes K.
        seed: of all random streams.
        budget: sizes of the checks.
        context: what else is known.
        stand_in: a fast copy that attacks climb on and ask; verdicts are the model's.
        fresh: the network as it was before its first query; made here if None.
        batch_size: images sent through at once.

    Attributes:
        stochastic: whether the network is random.
        eot: gradients averaged per step: the budget's, or 1 for a network that is not random.
        found: see ``Found``.
        clean: share of draws in which each clean image is classified correctly, (n,).
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        threat: Threat,
        *,
        classes: int,
        seed: int,
        budget: Budget,
        context: Context | None = None,
        stand_in: FastNetwork | None = None,
        fresh: Fresh | None = None,
        batch_size: int = 256,
    ) -> None:
        self.fresh = fresh or Fresh(model)
        self.model, self.x, self.y, self.index = model, x, y, index
        self.threat, self.classes, self.seed, self.budget = threat, classes, seed, budget
        self.context = context or Context()
        self.network: nn.Module = stand_in if stand_in is not None else model
        self.batch_size = batch_size
        self.stochastic = is_stochastic(model)
        self.eot = budget.eot if self.stochastic else 1
        self.draws = budget.draws if self.stochastic else 1
        self.found = Found(x)
        self.check = ""  # id of the check at work: whose adversarials are found
        self.clean = self.judged(x, "clean")
        self._white: Attacked | None = None
        self._no_gradient: str | None = None
        self._unbounded: tuple[Attacked, Attacked] | None = None
        self._known: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.x)

    @property
    def correct_rows(self) -> Tensor:
        """Images that are classified correctly, by majority of the draws; (R,)."""
        return (self.clean > 0.5).nonzero().flatten()

    @property
    def few(self) -> Tensor:
        """The first images that are classified correctly, as many as the dearest checks may look at; (R,)."""
        return self.correct_rows[: self.budget.few]

    def beside(self, network: nn.Module) -> Subject:
        """Another network on the same images, in the same threat, with the same streams and budget."""
        return Subject(
            network,
            self.x,
            self.y,
            self.index,
            self.threat,
            classes=self.classes,
            seed=self.seed,
            budget=self.budget,
            batch_size=self.batch_size,
        )

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What several checks need, made by the first of them; equal names give equal things, whoever comes first."""
        if name not in self._known:
            self._known[name] = make()
        out: T = self._known[name]
        return out

    # Randomness -----------------------------------------------------------------------------------------

    def random(self, name: str, rows: Tensor | None = None) -> SampleRandom:
        """The images' streams of a name; equal names give equal numbers, whatever ran before."""
        index = self.index if rows is None else self.index[rows.cpu()]
        return SampleRandom.for_images(self.seed, f"certificate/{name}", index.tolist())

    # Asking the network ---------------------------------------------------------------------------------

    def logits(self, x: Tensor, random: SampleRandom, network: nn.Module | None = None) -> Tensor:
        """Logits of one pass of the network itself (or of another), in float32 or wider, (B, K)."""
        network = network or self.model
        with torch.no_grad(), noise_from(network, random if self.stochastic else None):
            out = logits_in_parts(network, x)
        return out.float() if out.dtype in (torch.bfloat16, torch.float16) else out

    def judged(self, x: Tensor, name: str, rows: Tensor | None = None, draws: int | None = None) -> Tensor:
        """Share of draws in which the network itself classifies images correctly, (R,); logits that are not finite
        count as correct no more than as wrong: they raise.

        Args:
            x: images (R, C, H, W).
            name: of the noise's stream.
            rows: which of the subject's images they belong to; all if None.
            draws: passes; the budget's if None; 1 for a network that is not random.

        Raises:
            UserError: logits that are not finite. Nothing can be said of such a network.
        """
        y = self.y if rows is None else self.y[rows]
        random = self.random(f"{name}/judge", rows)
        draws = (draws or self.draws) if self.stochastic else 1
        total = torch.zeros(len(y), device=y.device)
        for _ in range(draws if len(y) else 0):
            logits = self.logits(x, random)
            if not bool(logits.isfinite().all()):
                raise UserError(f"{self.check or name}: the network's logits are not finite")
            total += logits.argmax(1) == y
        return total / draws

    def gradient(
        self, x: Tensor, name: str, loss: Loss, rows: Tensor | None = None, network: nn.Module | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (R, C, H, W), losses (R,) and logits (R, K) at images of some rows, of the network itself."""
        y = self.y if rows is None else self.y[rows]
        seen = SeesCopies(network or self.model)
        return input_gradient(seen, x, y, loss, self.random(name, rows), self.eot)

    def unavailable(self, rows: Tensor) -> str:
        """Why no gradient can be computed at some images; an empty string where it can."""
        for name in ("ce", "margin"):
            try:
                slope, _, _ = self.gradient(self.x[rows], "available", LOSSES[name], rows)
            except (KeyboardInterrupt, OutOfTime):
                raise
            except BaseException as e:  # whatever a foreign network's backward pass raises
                return f"{type(e).__name__}: {one_line(e)[:120]}"
            if not bool(slope.isfinite().all()):
                return f"the gradient of the {'cross-entropy' if name == 'ce' else 'margin'} is not finite"
        return ""

    @property
    def no_gradient(self) -> str:
        """Why gradients cannot be had at the first two images that are classified right; empty where they can."""
        if self._no_gradient is None:
            rows = self.correct_rows[:2]
            self._no_gradient = self.unavailable(rows) if len(rows) else ""
        return self._no_gradient

    def require_gradient(self) -> None:
        """Raise NoGradients where gradients cannot be had."""
        if self.no_gradient:
            raise NoGradients(
                f"the network gives no gradient ({self.no_gradient}), and this needs one: see G2"
            )

    # Attacks --------------------------------------------------------------------------------------------

    def attack(
        self,
        attack: Attack,
        name: str,
        *,
        rows: Tensor | None = None,
        threat: Threat | None = None,
        on: nn.Module | None = None,
    ) -> Attacked:
        """Attack some images and judge the candidates on the network itself.

        What lies inside the benchmark's ball and fools the network is noted in ``found``. An image that no draw
        classifies correctly as it is comes back as it is: it is its own adversarial, of whatever ball.

        Args:
            attack: the attack; its ``eot`` is used as it is.
            name: of its random streams; unlike the id of the check it stays the same wherever it is used.
            rows: the images, (R,); all if None.
            threat: in place of the benchmark's.
            on: a surrogate that is attacked in place of the network.
        """
        rows = torch.arange(len(self), device=self.x.device) if rows is None else rows
        threat = threat or self.threat
        out = Attacked(self.x[rows].clone(), self.clean[rows].clone())
        todo = (out.correct > 0).nonzero().flatten()
        for part in (
            torch.split(todo, self.batch_size) if len(todo) else ()
        ):  # not every network takes an empty batch
            new = self._attack(attack, name, rows[part], threat, on)
            out.candidate[part], out.correct[part] = new.candidate.to(out.candidate), new.correct
        self.note(rows[todo], out.candidate[todo], out.correct[todo])
        return out

    def _attack(
        self, attack: Attack, name: str, rows: Tensor, threat: Threat, on: nn.Module | None
    ) -> Attacked:
        if on is None and not attack.black_box:
            self.require_gradient()
        network = on or self.network
        x, y = self.x[rows], self.y[rows]
        random = self.random(name, rows)

        def attempt(climbed: nn.Module, part: Tensor) -> tuple[Tensor, Tensor]:
            streams = random if len(part) == len(rows) else random.subset(part)
            found = self._legal(attack(climbed, x[part], y[part], threat, streams), x[part], threat)
            return found, self.judged(found, name, rows[part])

        return Attacked(*confirmed(network, self.model, y, attempt))

    def _legal(self, candidate: Tensor, x: Tensor, threat: Threat) -> Tensor:
        if not bool(check_candidate(candidate, x).isfinite().all()):
            raise UserError(f"{self.check}: an attack gave an image that is not finite")
        return threat.project(candidate.to(x.dtype), x)

    def note(self, rows: Tensor, candidate: Tensor, correct: Tensor) -> None:
        """Keep candidates of some images that lie in the benchmark's ball and are classified worse than before."""
        legal = inside(self.threat, candidate - self.x[rows])
        self.found.update(rows[legal], candidate[legal], correct[legal], self.check)

    def tau(self, first: Tensor, second: Tensor) -> float:
        """Half the width of the 95 % paired interval of mean(first) - mean(second), same images."""
        low, high = interval(first.tolist(), second.tolist())
        return (high - low) / 2

    def exceeds(self, first: Tensor, second: Tensor) -> bool:
        """Whether mean(first) lies above mean(second) by more than chance: the paired interval lies above 0."""
        return len(first) > 0 and interval(first.tolist(), second.tolist())[0] > 0

    # What several checks share --------------------------------------------------------------------------

    @property
    def reported(self) -> Tensor:
        """What the row reports of each image: the smallest verdict of the benchmark's attacks inside its ball, (n,)."""
        correct = self.clean.clone()
        for plan in self.context.plans:
            table = self.context.outcomes.get(plan.label)
            if table is None or "adv_correct" not in table:  # it crashed before any verdict
                continue
            mine = table.set_index("index").reindex(self.index.tolist())
            size = torch.tensor(mine[self.threat.norm].to_numpy(), dtype=torch.float64)
            share = torch.tensor(mine["adv_correct"].to_numpy(), dtype=torch.float32)
            legal = (size <= self.threat.reach) & share.isfinite()
            share = torch.where(legal, share, math.inf).to(correct)
            correct = torch.minimum(correct, share)
        return correct

    def battery(self) -> list[tuple[str, Attack]]:
        """The certificate's own white-box attacks, in order, by stream name."""
        b = self.budget
        out: list[tuple[str, Attack]] = [
            ("ce", APGD(steps=b.steps, loss="ce", eot=self.eot)),
            ("margin", APGD(steps=b.steps, loss="margin", eot=self.eot)),
        ]
        if self.classes >= 4:
            targeted = APGD(steps=b.steps, loss="dlr_targeted", targets=b.targets, eot=self.eot)
            out.append(("dlr_targeted", targeted))
        return out

    def strongest(
        self,
        name: str,
        *,
        rows: Tensor | None = None,
        threat: Threat | None = None,
        on: nn.Module | None = None,
    ) -> Attacked:
        """The battery, attack after attack; on a network that is not random each sees what remains.

        A network without gradients is left to a black box.
        """
        rows = torch.arange(len(self), device=self.x.device) if rows is None else rows
        candidate, correct = self.x[rows].clone(), self.clean[rows].clone()
        battery = self.battery()
        if on is None and self.no_gradient:
            battery = [("square", Square(queries=self.budget.queries, eot=max(1, self.eot // 4)))]
        for kind, attack in battery:
            remaining = (correct > 0).nonzero().flatten()
            if len(remaining) == 0:
                break
            new = self.attack(attack, f"{name}/{kind}", rows=rows[remaining], threat=threat, on=on)
            better = remaining[new.correct < correct[remaining]]
            chosen = new.correct < correct[remaining]
            candidate[better], correct[better] = new.candidate[chosen], new.correct[chosen]
        return Attacked(candidate, correct)

    @property
    def walked(self) -> Attacked:
        """What the battery alone found on all images, as ``strongest`` says it."""

        def walk() -> Attacked:
            was, self.check = self.check, "white box"
            try:
                return self.strongest("white")
            finally:
                self.check = was

        return self.once("white", walk)

    @property
    def white(self) -> Attacked:
        """The strongest white-box verdicts: the battery's, and what the benchmark's own attacks have found.

        A random network's candidates are judged anew: the smallest of several noisy shares flatters the attack.
        """
        if self._white is None:
            out = self.walked
            correct = self.judged(out.candidate, "white again") if self.stochastic else out.correct
            self._white = Attacked(out.candidate, torch.minimum(correct, self.reported))
        return self._white

    def only_here(self, attacked: Attacked, rows: Tensor) -> Tensor:
        """Images that a check fools and the white box does not, even when it tries again and harder; (R,).

        Args:
            attacked: the check's candidates.
            rows: the images they belong to.
        """
        remaining = rows[(attacked.correct < 0.5) & (self.white.correct[rows] > 0.5)]
        for i, (kind, attack) in enumerate(self.battery()):
            if len(remaining) == 0:
                break
            assert isinstance(attack, APGD)
            if self.no_gradient:
                break
            harder = APGD(
                steps=2 * attack.steps,
                restarts=5 if i < 2 else 1,
                loss=attack.loss,
                targets=self.classes - 1,
                eot=attack.eot,
            )
            remaining = remaining[self.attack(harder, f"white/retry/{kind}", rows=remaining).correct > 0.5]
        return remaining

    def in_two(self, attack: PGD, name: str, rows: Tensor, threat: Threat) -> Attacked:
        """An attack that should break everything: where no image leaves early, a quarter of its steps on all first.

        What a network that is not random has lost costs no further step anyway. What a random one still classifies
        right in half of the draws gets the whole attack.
        """
        if not self.stochastic:
            return self.attack(attack, name, rows=rows, threat=threat)
        short = replace(attack, steps=max(1, attack.steps // 4), restarts=1)
        out = self.attack(short, f"{name}/short", rows=rows, threat=threat)
        left = (out.correct > 0.5).nonzero().flatten()
        new = self.attack(attack, name, rows=rows[left], threat=threat)
        better = new.correct < out.correct[left]
        out.candidate[left[better]], out.correct[left[better]] = new.candidate[better], new.correct[better]
        return out

    def indices(self, rows: Tensor) -> list[int]:
        """Positions in the data set of some images."""
        return [int(i) for i in self.index[rows.cpu()]]

    @property
    def unbounded(self) -> tuple[Attacked, Attacked]:
        """100 steps with the whole box as ball on images classified correctly: cross-entropy alone, then with the
        margin on what remains; ``correct_rows`` says which images.
        """
        if self._unbounded is None:
            box = Threat(norm="linf", eps=1.0)
            steps = max(100, self.budget.steps)
            walk = PGD(steps=steps, step_size=0.05, eot=self.eot)
            ce = self.in_two(walk, "unbounded/ce", self.correct_rows, box)
            both = Attacked(ce.candidate.clone(), ce.correct.clone())
            remaining = (ce.correct > 0.5).nonzero().flatten()
            if len(remaining):
                margin = PGD(steps=steps, step_size=0.05, loss="margin", restarts=3, eot=self.eot)
                new = self.in_two(margin, "unbounded/margin", self.correct_rows[remaining], box)
                both.candidate[remaining], both.correct[remaining] = (
                    new.candidate,
                    torch.minimum(new.correct, both.correct[remaining]),
                )
            self._unbounded = ce, both
        return self._unbounded


class Found:
    """The adversarial with the smallest share correct for every image, over all checks, and which check found it.

    Args:
        x: clean images (n, C, H, W).
    """

    def __init__(self, x: Tensor) -> None:
        self.candidate = x.clone()
        self.correct = torch.full((len(x),), math.inf, device=x.device)
        self.by = [""] * len(x)

    def copy(self) -> Found:
        """The same, which later finds do not change."""
        out = Found(self.candidate)
        out.correct, out.by = self.correct.clone(), list(self.by)
        return out

    def update(self, rows: Tensor, candidate: Tensor, correct: Tensor, check: str) -> None:
        """Show candidates of some images; see the class."""
        better = correct < self.correct[rows]
        chosen = rows[better]
        self.candidate[chosen], self.correct[chosen] = candidate[better], correct[better]
        for i in chosen.tolist():
            self.by[i] = check

    @property
    def rows(self) -> Tensor:
        """Images with any candidate, (R,)."""
        return self.correct.isfinite().nonzero().flatten()
