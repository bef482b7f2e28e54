"""The judge: runs attacks, measures what they return, and stores one record per image.

Attacks only propose. Here the perturbation's norm, the box, the success and the cost are measured, in
float32, on the network as it was read back from its file. A candidate outside its threat is projected back
and judged again; a crash or a value that is not finite leaves the image without a verdict.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
from robustbench_sparse.engine.fast import FastNetwork, Precision, logits_in_parts, unconfirmed
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import plain, read_json, write_atomically, write_json
from robustbench_sparse.foundation.progress import Show
from robustbench_sparse.runs.provenance import code_of
from robustbench_sparse.runs.seals import Seals

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
class Protocol:
    """How verdicts are reached.

    Attributes:
        seed: seed of the evaluation's random streams.
        batch_size: images attacked at once; changes no results but those of attacks that depend on the batch.
        draws: passes a random network's verdict is averaged over.
        precision: of the network that is attacked; verdicts are float32's.
    """

    seed: int
    batch_size: int = 256
    draws: int = 10
    precision: Precision = "fp32"


class Judge:
    """Judges one network on the test images and keeps the outcomes in a folder.

    Args:
        model: the deployed network in eval mode, on the data's device.
        data: holds the test images.
        folder: where ``<label>.csv`` and ``<label>.json`` go, below the run's folder, whose record names them; a killed
            evaluation goes on there.
        protocol: seeds, batch size, draws.
        identity: names the weights and the data set judged; outcomes of others are made anew.
        show: where progress goes.
        title: the bars' title.
        stand_in: a copy of the model that attacks climb on instead; verdicts are the model's own. Images that only
            the copy gets wrong are attacked again on the model.
    """

    def __init__(
        self,
        model: nn.Module,
        data: PreparedData,
        folder: Path,
        protocol: Protocol,
        identity: str,
        show: Show,
        title: str = "",
        stand_in: FastNetwork | None = None,
    ) -> None:
        self.stand_in = stand_in
        self.model, self.data, self.folder, self.protocol = model, data, folder, protocol
        self.identity, self.show, self.title = identity, show, title
        self.stochastic = is_stochastic(model)
        self.draws = protocol.draws if self.stochastic else 1
        self.seals = Seals(folder.parent)

    # What is called -------------------------------------------------------------------------------------

    def clean(self) -> pd.DataFrame:
        """Verdicts on the clean images: index, label, pred, correct (share of draws), forward."""

        def judge(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
            pred, correct, finite = self._verdict(
                x, y, SampleRandom.for_images(self.protocol.seed, "clean", index.tolist())
            )
            table: pd.DataFrame = pd.DataFrame(
                {
                    "index": index.tolist(),
                    "label": y.tolist(),
                    "pred": pred.tolist(),
                    "correct": [
                        c if f else None for c, f in zip(correct.tolist(), finite.tolist(), strict=True)
                    ],
                    "forward": float(self.draws),
                    "status": ["ok" if f else "nonfinite" for f in finite.tolist()],
                }
            )
            return table

        return self._collect("clean", self.key(None), judge, {})

    def attack(self, plan: AttackPlan) -> pd.DataFrame:
        """Verdicts under one attack, see DataFrame columns in the package's documentation of outcomes."""
        clean = self.clean().set_index("index")

        def judge(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
            rows = clean.loc[index.tolist()]
            if self.stand_in is None:
                return self._attack_batch(plan, self.model, index, x, y, rows)[0]
            table, candidate = self._attack_batch(plan, self.stand_in, index, x, y, rows)
            right = (torch.tensor(table["adv_correct"].to_numpy()) == 1).to(y.device)
            again = unconfirmed(self.stand_in, candidate, y, right) if not plan.attack.weak else right[:0]
            if len(again):
                at = again.cpu()
                more, _ = self._attack_batch(
                    plan, self.model, index[at], x[again], y[again], rows.iloc[at.tolist()]
                )
                more.index = table.index[at.tolist()]
                for column in ("forward", "backward"):
                    more[column] += table.loc[more.index, column]
                table = pd.concat([table.drop(index=more.index), more]).sort_index()
            return table

        facts = {
            "bounded": plan.attack.bounded,  # whether a candidate outside the ball is a fault, or only a long way
            "minimum_norm": seeks_smallest(
                plan.attack
            ),  # whether the distances say something about every radius
        }
        return self._collect(plan.label, self.key(plan), judge, facts)

    def all_done(self, plans: Iterable[AttackPlan]) -> bool:
        """Whether every outcome is stored already."""
        return self.is_done("clean", self.key(None)) and all(
            self.is_done(p.label, self.key(p)) for p in plans
        )

    def tidy(self) -> None:
        """Remove what a process left that was killed once an outcome was stored; all outcomes are."""
        for parts in self.folder.glob(".*.parts"):
            shutil.rmtree(parts, ignore_errors=True)

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
        # add noise measure an average, not a worst case, and see every image.
        skip = (clean_correct == 0) & (not self.stochastic and not plan.attack.weak)
        todo = (~skip).nonzero().flatten().to(x.device)
        seed, streams = self.protocol.seed, f"attack/{plan.label}"
        counter = PassCounter(attacked).eval()
        candidate = x.clone()
        if len(todo):
            random = SampleRandom.for_images(seed, streams, index[todo.cpu()].tolist())
            given = x[todo]
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
        pred, correct, finite_out = self._verdict(candidate, y, random)
        judged = finite.cpu() & finite_out
        status = [
            "nonfinite" if not ok else "outside_ball" if far else "outside_box" if out else "ok"
            for ok, far, out in zip(judged.tolist(), ball.tolist(), box.tolist(), strict=True)
        ]
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
                "adv_correct": [
                    c if ok else None for c, ok in zip(correct.tolist(), judged.tolist(), strict=True)
                ],
                "linf": Threat(norm="linf").size(delta).tolist(),
                "l2": Threat(norm="l2").size(delta).tolist(),
                "distance": distance.tolist(),
                "far_correct": far_correct.tolist(),
                # Averages over the images of the batch that were attacked.
                "forward": [0.0 if s else counter.forwards / count for s in skip.tolist()],
                "backward": [0.0 if s else counter.backwards / count for s in skip.tolist()],
                "status": status,
            }
        )
        return table, candidate

    def _distance(
        self, threat: Threat, point: Tensor, x: Tensor, y: Tensor, random: SampleRandom
    ) -> tuple[Tensor, Tensor]:
        """Norm of each perturbation whose point fools the network, inf of the others; and the points' shares right.

        Both nan without a verdict; (B,).
        """
        _, correct, finite = self._verdict(point, y, random)
        distance = torch.where(correct <= 0.5, threat.size(point - x).cpu(), math.inf)
        return torch.where(finite, distance, math.nan), torch.where(finite, correct, math.nan)

    def _verdict(self, x: Tensor, y: Tensor, random: SampleRandom) -> tuple[Tensor, Tensor, Tensor]:
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

    # Batches to files -----------------------------------------------------------------------------------

    def key(self, plan: AttackPlan | None) -> dict[str, Any]:
        """Everything that determines an outcome's numbers; without a plan, those of the clean images."""
        key = {
            "identity": self.identity,
            "attack": {"label": "clean"} if plan is None else plan.record(),
            "seed": self.protocol.seed,
            "draws": self.draws,
            "test_images": hashlib.sha256(self.data.test_indices.numpy().tobytes()).hexdigest()[:16],
        }
        if plan is not None and plan.attack.batch_dependent:
            key["batch_size"] = self.protocol.batch_size
        if plan is not None and plan.source:
            key["source"] = plan.source
        if plan is not None:  # clean verdicts are float32's, whatever is attacked
            key["precision"] = self.protocol.precision
            key["code"] = code_of([plan.attack])
        out: dict[str, Any] = plain(key)
        return out

    def is_done(self, label: str, key: dict[str, Any]) -> bool:
        """Whether a whole and valid outcome of this key is stored."""
        if not self.seals.holds(*self._files(label)):
            return False
        stored = read_json(self.folder / f"{label}.json")
        return isinstance(stored, dict) and stored.get("key") == key and stored.get("status") == "ok"

    def _files(self, label: str) -> tuple[str, str]:
        """An outcome's files as the run's record names them."""
        return f"{self.folder.name}/{label}.csv", f"{self.folder.name}/{label}.json"

    def _collect(
        self,
        label: str,
        key: dict[str, Any],
        judge: Callable[[Tensor, Tensor, Tensor], pd.DataFrame],
        facts: dict[str, bool],
    ) -> pd.DataFrame:
        """Run ``judge`` batch by batch, each batch's rows in a file of their own, then join the files."""
        path, parts = self.folder / f"{label}.csv", self.folder / f".{label}.parts"
        if self.is_done(label, key):
            # Left by a process that was killed once the outcome was stored.
            shutil.rmtree(parts, ignore_errors=True)
            return _read(path)
        marker = parts / "key.json"
        wanted = {"key": key, "batch_size": self.protocol.batch_size}
        if not (marker.exists() and read_json(marker) == wanted):
            shutil.rmtree(parts, ignore_errors=True)
            write_json(marker, wanted)
        total = self.data.count("test")
        done = [p for p in self._parts(parts, total) if p.exists()]
        task = self.show.start(
            f"{self.title} {label}".strip(), total, "images", min(len(done) * self.protocol.batch_size, total)
        )
        reason = ""
        tables: list[pd.DataFrame] = []
        try:
            for part, (x, y, index) in zip(
                self._parts(parts, total), self.data.ordered("test", self.protocol.batch_size), strict=True
            ):
                if part.exists():
                    tables.append(_read(part))
                    continue
                began = time.perf_counter()
                try:
                    table = judge(index, x, y)
                except (UserError, KeyboardInterrupt):
                    raise
                except BaseException as e:  # what an attack or a network raises is never robustness
                    reason = f"crashed: {type(e).__name__}: {one_line(e)[:200]}"
                    break
                table["seconds"] = (time.perf_counter() - began) / len(table)
                write_atomically(part, lambda f, t=table: t.to_csv(f, index=False))  # type: ignore[misc]
                tables.append(table)
                task.advance(len(table))
        finally:
            task.close()
        return self._join(label, key, tables, reason, parts, facts)

    def _parts(self, parts: Path, total: int) -> list[Path]:
        return [parts / f"{start:06d}.csv" for start in range(0, total, self.protocol.batch_size)]

    def _join(
        self,
        label: str,
        key: dict[str, Any],
        tables: list[pd.DataFrame],
        reason: str,
        parts: Path,
        facts: dict[str, bool],
    ) -> pd.DataFrame:
        table = (
            pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"status": [], "seconds": []})
        )
        lost = int((table["status"] == "nonfinite").sum())
        if lost and not reason:
            reason = f"nonfinite: {lost} of {len(table)} images gave a value that is not finite"
        seconds = float(table.pop("seconds").sum())
        meta = {
            "label": label,
            "status": reason.split(":")[0] if reason else "ok",
            "reason": reason.partition(": ")[2],
            "n": len(table),
            **facts,
            "draws": self.draws,
            "seconds": seconds,
            "flags": {k: int(v) for k, v in table["status"].value_counts().items() if k != "ok"},
            "key": key,
        }
        with self.seals.renewing(*self._files(label)):
            write_atomically(self.folder / f"{label}.csv", lambda f: table.to_csv(f, index=False))
            write_json(self.folder / f"{label}.json", meta)
        if meta["status"] != "crashed":  # after a crash is mended, the batches judged before it still hold
            shutil.rmtree(parts, ignore_errors=True)
        return table


def _read(path: Path) -> pd.DataFrame:
    try:
        # Python's own parser gives numbers back bit for bit: a resumed outcome equals an unbroken one.
        return pd.read_csv(path, engine="python")
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: damaged, delete it to judge again ({one_line(e)[:100]})") from None


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
