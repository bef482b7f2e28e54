"""The judge: runs attacks, measures what they return, and stores one record per image.

Attacks only propose. Here the perturbation's norm, the box, the success and the cost are measured, in
float32, on the network as it was read back from its file. A candidate outside its threat is projected back
and judged again; a crash or a value that is not finite leaves the image without a verdict.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from attacks.base import (
    Attack,
    SampleRandom,
    SeesCopies,
    Threat,
    check_candidate,
    is_stochastic,
    noise_from,
)
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.engine.fast import FastNetwork, Precision, confirmed, logits_in_parts
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import plain
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.judging.fresh import Fresh
from robustbench_sparse.runs import names
from robustbench_sparse.runs.outcome_store import Batch, JudgesBatch, OutcomeStore, Wanted
from robustbench_sparse.runs.outcomes import UNDECIDED, unchanged
from robustbench_sparse.runs.provenance import code_of

# torch's words where nothing leads from the loss back to the images.
_NO_GRADIENT = ("does not require grad", "appears to not have been used in the graph")
BOX_SLACK = 1e-6  # rounding of x + delta in float32


class PassCounter(SeesCopies):
    """A network that counts the images sent forward and backward through it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.forwards = 0
        self.backwards = 0

    @property
    def exact(self) -> Callable[[Tensor], Tensor] | None:
        """What ``attacks.base.exact_of`` looks for; images sent through it count, too."""
        exact = super().exact
        if exact is None:
            return None

        def counted(x: Tensor) -> Tensor:
            self.forwards += x.shape[0]
            return exact(x)

        return counted

    def forward(self, x: Tensor) -> Tensor:
        """The network's own logits."""
        self.forwards += x.shape[0]
        out = super().forward(x)
        if out.requires_grad:
            out.register_hook(self._count)  # type: ignore[no-untyped-call]
        return out

    def _count(self, grad: Tensor) -> None:
        self.backwards += grad.shape[0]


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """How verdicts are reached.

    Attributes:
        seed: seed of the evaluation's random streams.
        batch_size: images attacked at once; changes no results but those of attacks that depend on the batch.
        draws: passes a random network's verdict is averaged over.
        precision: of the network that is attacked; verdicts are float32's.
        shards: parts of an outcome that other processes may make, see ``Judge.help``; changes no results.
    """

    seed: int
    batch_size: int = 256
    draws: int = 10
    precision: Precision = "fp32"
    shards: int = 1


class Judge:
    """Judges one network on the test images and keeps the outcomes in a folder.

    Args:
        model: the deployed network in eval mode, on the data's device.
        data: holds the test images.
        run: the run's folder, which keeps the outcomes; a killed evaluation goes on there.
        settings: seeds, batch size, draws.
        identity: names the weights and the data set judged; outcomes of others are made anew.
        show: where progress goes.
        title: the bars' title.
        stand_in: a copy of the model that attacks climb on instead; verdicts are the model's own. Images that only
            the copy gets wrong are attacked again on the model.
        fresh: the model as it was before its first query; made here if None.
    """

    def __init__(
        self,
        model: nn.Module,
        data: PreparedData,
        run: Path,
        settings: JudgeSettings,
        identity: str,
        show: Progress,
        title: str = "",
        stand_in: FastNetwork | None = None,
        fresh: Fresh | None = None,
    ) -> None:
        self.fresh = fresh or Fresh(model)
        self.stand_in = stand_in
        self.model, self.data, self.settings = model, data, settings
        self.identity, self.show, self.title = identity, show, title
        self.run = run
        self.store = OutcomeStore(run, settings.batch_size, show, title, settings.shards)
        self.stochastic = is_stochastic(model)
        self.draws = settings.draws if self.stochastic else 1

    def climb(self, stand_in: FastNetwork | None) -> None:
        """Let attacks climb on a copy of the model from now on; on the model itself, in float32, if None."""
        self.stand_in = stand_in
        if stand_in is None:
            self.settings = replace(self.settings, precision="fp32")

    # What is called -------------------------------------------------------------------------------------

    def clean(self) -> pd.DataFrame:
        """Verdicts on the clean images: index, label, pred, correct (share of draws), forward, status.

        An image whose logits are not finite is alone without a verdict, here and under every attack.
        """

        def judge(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
            table = self.records(index, x, y, names.CLEAN)
            table["status"] = table["status"].replace("nonfinite", UNDECIDED)
            return table

        return self._collect(names.CLEAN, self.key(None), judge, {})

    def records(
        self, index: Tensor, x: Tensor, y: Tensor, stream: str, seen: Tensor | None = None
    ) -> pd.DataFrame:
        """Verdicts on images as they are: index, label, pred, correct (share of draws), forward, status.

        Args:
            index: the images' positions in the data set, (B,).
            x, y: images (B, C, H, W) and labels (B,).
            stream: name of the random streams that a random network draws from.
            seen: which images may have a verdict, bool (B,) on the CPU; all if None.
        """
        random = SampleRandom.for_images(self.settings.seed, stream, index.tolist())
        pred, correct, judged = self.verdict(x, y, random)
        if seen is not None:
            judged = judged & seen
        table: pd.DataFrame = pd.DataFrame(
            {
                "index": index.tolist(),
                "label": y.tolist(),
                "pred": pred.tolist(),
                "correct": where(correct, judged),
                "forward": float(self.draws),
                "status": statuses(judged),
            }
        )
        return table

    def attack(self, plan: AttackPlan) -> pd.DataFrame:
        """Verdicts under one attack, one row per image; ``docs/results_format.md`` has the columns."""
        return self.store.collect(
            self._wanted(plan), self._batches, self.data.count("test"), self._attacks_batch(plan)
        )

    def candidates(self, plan: AttackPlan, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The images that are judged under one attack, which climbs on the network itself; nothing is stored of them.

        Args:
            plan: the attack.
            index: the images' positions in the data set, (B,).
            x, y: images (B, C, H, W) and labels (B,).
        """
        clean = self.clean().set_index("index").loc[index.tolist()]
        return self._attack_batch(plan, self.model, index, x, y, clean)[1]

    def help(self, plans: Iterable[AttackPlan]) -> bool:
        """Make shards of the attack that another process has at work; whether there was one that nobody was at."""
        total = self.data.count("test")
        found = [
            self.store.help(self._wanted(plan), self._batches, total, self._attacks_batch(plan))
            for plan in plans
            if self.has_shards([plan])
        ]
        return any(found)

    def has_shards(self, plans: Iterable[AttackPlan]) -> bool:
        """Whether another process has one of these attacks at work."""
        begun = any(self.store.is_begun(self._wanted(plan)) for plan in plans)
        return begun and self.store.is_done(names.CLEAN, self.key(None))

    def _attacks_batch(self, plan: AttackPlan) -> JudgesBatch:
        """What makes the records of a batch under one attack."""
        clean = self.clean().set_index("index")
        by_prediction = plan.attack.reference == "prediction"

        def judge(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
            before = clean.loc[index.tolist()]
            tables: list[pd.DataFrame] = []

            def attempt(network: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
                at = rows.cpu()
                table, candidate = self._attack_batch(
                    plan, network, index[at], x[rows], y[rows], before.iloc[at.tolist()]
                )
                tables.append(table.set_axis(at.tolist()))
                shares = unchanged(table) if by_prediction else table["adv_correct"]  # nan without a verdict
                return candidate, torch.tensor(shares.to_numpy(dtype="float64"), device=y.device)

            if plan.attack.weak:  # an average, not a worst case: the first answer counts
                attempt(self.stand_in or self.model, torch.arange(len(y), device=y.device))
            else:
                right = torch.tensor(before["pred"].to_numpy()).to(y) if by_prediction else y
                confirmed(self.stand_in or self.model, self.model, right, attempt)
            return _merged(*tables)

        return judge

    def _wanted(self, plan: AttackPlan) -> Wanted:
        facts = {
            "bounded": plan.attack.bounded,  # whether a candidate outside the ball is a fault, or only a long way
            "minimum_norm": seeks_smallest(
                plan.attack
            ),  # whether the distances say something about every radius
            "draws": self.draws,
        }
        return Wanted(label=plan.label, key=self.key(plan), facts=facts)

    def all_done(self, plans: Iterable[AttackPlan]) -> bool:
        """Whether every outcome is stored already."""
        return self.store.is_done(names.CLEAN, self.key(None)) and all(
            self.store.is_done(p.label, self.key(p)) for p in plans
        )

    def tidy(self) -> None:
        """Remove what a killed process left; all outcomes are stored."""
        self.store.tidy()

    def everything(self, plans: Iterable[AttackPlan]) -> None:
        """Judge the clean images and every attack; what is stored already is not judged again.

        A network that crashed on clean images is not attacked.
        """
        if len(self.clean()) < self.data.count("test"):
            return
        for plan in plans:
            self.attack(plan)

    # One batch ------------------------------------------------------------------------------------------

    def _attack_batch(
        self,
        plan: AttackPlan,
        attacked: nn.Module,
        index: Tensor,
        x: Tensor,
        y: Tensor,
        clean: pd.DataFrame,
    ) -> tuple[pd.DataFrame, Tensor]:
        """The records of a batch attacked on one network and judged on the model, and the candidates judged.

        ``distance`` is the norm, the threat's, of what fools the network: 0 where the clean image is enough, inf where
        nothing was found. Of an attack that knows no ball it is that of the candidate as returned, clipped to the box;
        of any other that of the candidate judged. A random network is fooled where half of the draws are wrong.
        ``far_correct`` is the share of draws that are right on the candidate whose norm it is.
        """
        clean_correct = torch.tensor(clean["correct"].to_numpy(), dtype=torch.float32)
        # A deterministic network's mistake is its own adversarial example: the clean image. Attacks that only
        # add noise measure an average, not a worst case, and see every image; so do those that start from the
        # network's own prediction, right or wrong.
        skips = not self.stochastic and not plan.attack.weak and plan.attack.reference == "label"
        undecided = torch.tensor((clean["status"] == UNDECIDED).to_numpy())
        skip = ((clean_correct == 0) & skips) | undecided
        todo = (~skip).nonzero().flatten().to(x.device)
        seed, streams = self.settings.seed, f"attack/{plan.label}"
        counter = PassCounter(attacked).eval()
        candidate = x.clone()
        if len(todo):
            random = SampleRandom.for_images(seed, streams, index[todo.cpu()].tolist())
            given = x[todo]
            with _told(plan):
                found = plan.attack(counter, given, y[todo], plan.threat, random)
            candidate[todo] = check_candidate(found, given).detach().to(x)
        count = max(len(todo), 1)

        finite = torch.isfinite(candidate).flatten(1).all(1)
        candidate = torch.where(finite.view(-1, 1, 1, 1), candidate, x)
        box = (candidate < -BOX_SLACK).flatten(1).any(1) | (candidate > 1 + BOX_SLACK).flatten(1).any(1)
        # The box first: what lies in the ball once it is clipped is judged as that, and not as another point.
        returned = candidate = candidate.clamp(0, 1)
        ball = torch.zeros_like(box)
        if not plan.attack.own_set:
            ball = ~inside(plan.threat, candidate - x)
            if ball.any():
                candidate = candidate.clone()
                candidate[ball] = plan.threat.project(candidate[ball], x[ball])
        random = SampleRandom.for_images(seed, f"judge/{plan.label}", index.tolist())
        pred, correct, finite_out = self.verdict(candidate, y, random)
        judged = finite.cpu() & finite_out & ~undecided
        delta = candidate - x
        distance = torch.where(correct <= 0.5, plan.threat.size(delta).cpu(), math.inf)
        far_correct = correct.clone()
        if not plan.attack.bounded and bool(ball.any()):
            at = ball.nonzero().flatten()
            random = SampleRandom.for_images(seed, f"distance/{plan.label}", index[at.cpu()].tolist())
            far = self._distance(plan.threat, returned[at], x[at], y[at], random)
            distance[at.cpu()], far_correct[at.cpu()] = far
        distance[~judged], far_correct[~judged] = math.nan, math.nan
        distance[clean_correct <= 0.5] = 0
        if plan.attack.own_set:
            distance[:] = math.nan  # such as rotations: their norm says nothing about the adversary in a ball
        table: pd.DataFrame = pd.DataFrame(
            {
                "index": index.tolist(),
                "label": y.tolist(),
                "clean_pred": clean["pred"].tolist(),
                "clean_correct": clean["correct"].tolist(),
                "adv_pred": pred.tolist(),
                "adv_correct": where(correct, judged),
                "linf": Threat(norm="linf").size(delta).tolist(),
                "l2": Threat(norm="l2").size(delta).tolist(),
                "distance": distance.tolist(),
                "far_correct": far_correct.tolist(),
                # Averages over the images of the batch that were attacked.
                "forward": [0.0 if s else counter.forwards / count for s in skip.tolist()],
                "backward": [0.0 if s else counter.backwards / count for s in skip.tolist()],
                "status": statuses(judged, ball, box, undecided),
            }
        )
        return table, candidate

    def _distance(
        self, threat: Threat, point: Tensor, x: Tensor, y: Tensor, random: SampleRandom
    ) -> tuple[Tensor, Tensor]:
        """Norm of each perturbation whose point fools the network, inf of the others; and the points' shares right.

        Both nan without a verdict; (B,).
        """
        _, correct, finite = self.verdict(point, y, random)
        distance = torch.where(correct <= 0.5, threat.size(point - x).cpu(), math.inf)
        return torch.where(finite, distance, math.nan), torch.where(finite, correct, math.nan)

    def verdict(self, x: Tensor, y: Tensor, random: SampleRandom) -> tuple[Tensor, Tensor, Tensor]:
        """Majority class, share of draws classified right, and whether all logits were finite; each (B,)."""
        correct = torch.zeros(len(y), device=x.device)
        finite = torch.ones(len(y), dtype=torch.bool, device=x.device)
        votes: Tensor | None = None
        with torch.no_grad(), noise_from(self.model, random if self.stochastic else None):
            for _ in range(self.draws):
                logits = logits_in_parts(self.model, x).float()
                if logits.ndim != 2 or len(logits) != len(y):
                    raise UserError(
                        f"expected logits of shape ({len(y)}, classes), got {tuple(logits.shape)}"
                    )
                finite &= torch.isfinite(logits).all(1)
                choice = logits.argmax(1)
                votes = torch.zeros_like(logits) if votes is None else votes
                votes.scatter_add_(1, choice[:, None], torch.ones_like(logits[:, :1]))
                correct += choice == y
        assert votes is not None
        return votes.argmax(1).cpu(), (correct / self.draws).cpu(), finite.cpu()

    # What an outcome depends on ------------------------------------------------------------------------

    def key(self, plan: AttackPlan | None) -> dict[str, Any]:
        """Everything that determines an outcome's numbers; without a plan, those of the clean images."""
        key = {
            "identity": self.identity,
            "attack": {"label": names.CLEAN} if plan is None else plan.record(),
            "seed": self.settings.seed,
            "draws": self.draws,
            "test_images": images_key(self.data),
        }
        if plan is not None and plan.attack.batch_dependent:
            key["batch_size"] = self.settings.batch_size
        if plan is not None and plan.source:
            key["source"] = plan.source
        if plan is not None:  # clean verdicts are float32's, whatever is attacked
            key["precision"] = self.settings.precision
            key["code"] = code_of([plan.attack])
        out: dict[str, Any] = plain(key)
        return out

    def _collect(
        self, label: str, key: dict[str, Any], judge: JudgesBatch, facts: dict[str, bool]
    ) -> pd.DataFrame:
        wanted = Wanted(label=label, key=key, facts={**facts, "draws": self.draws})
        return self.store.collect(wanted, self._batches, self.data.count("test"), judge)

    def _batches(self) -> Iterator[Batch]:
        return self.data.ordered("test", self.settings.batch_size)


@contextlib.contextmanager
def _told(plan: AttackPlan) -> Iterator[None]:
    """Say in plain words what torch says of a network that cannot be differentiated with respect to its images."""
    try:
        yield
    except RuntimeError as e:
        if any(text in str(e) for text in _NO_GRADIENT):
            raise RuntimeError(
                f"the network gives no gradient with respect to its images, which {plan.name} needs: what attacks "
                "without gradients find, such as square, is all that is known of it"
            ) from e
        raise


def images_key(data: PreparedData) -> str:
    """Names the test images that are judged."""
    return hashlib.sha256(data.test_indices.numpy().tobytes()).hexdigest()[:16]


def where(values: Tensor, judged: Tensor) -> list[float | None]:
    """The images' values (B,), None where there is no verdict."""
    return [v if ok else None for v, ok in zip(values.tolist(), judged.tolist(), strict=True)]


def statuses(
    judged: Tensor, ball: Tensor | None = None, box: Tensor | None = None, undecided: Tensor | None = None
) -> list[str]:
    """What an outcome says of each image: judged or not, and whether the candidate had left ball or box; (B,) each.

    ``undecided`` are those that the network gives no finite logits for as they are.
    """
    inside = torch.zeros_like(judged)
    far, out, never = ((inside if t is None else t).tolist() for t in (ball, box, undecided))
    return [
        UNDECIDED if n else "nonfinite" if not ok else "outside_ball" if f else "outside_box" if o else "ok"
        for ok, f, o, n in zip(judged.tolist(), far, out, never, strict=True)
    ]


def _merged(first: pd.DataFrame, again: pd.DataFrame | None = None) -> pd.DataFrame:
    """A batch's records with those rows replaced that were attacked again; both attacks' passes count."""
    if again is None:
        return first
    for column in ("forward", "backward"):
        again[column] += first.loc[again.index, column]
    merged: pd.DataFrame = pd.concat([first.drop(index=again.index), again]).sort_index()
    return merged


def seeks_smallest(attack: Attack) -> bool:
    """Whether an attack looks for the smallest perturbation that fools: the distances then belong to no one radius.

    Of the attacks that know no ball, the weak ones, such as noise, look for nothing, those with a set of their own look
    elsewhere, and FAB with ``within`` stops looking inside the ball.
    """
    content = bool(getattr(attack, "within", False))
    return not (attack.bounded or attack.own_set or attack.weak or content)


def inside(threat: Threat, delta: Tensor) -> Tensor:
    """Whether each perturbation (B, ...) lies in the threat's ball, up to rounding; (B,)."""
    return threat.size(delta) <= threat.reach
