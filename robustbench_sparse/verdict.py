"""One network judged: how fast it may be attacked, its outcomes, its certificate."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from torch import nn

from attacks.base import is_stochastic
from robustbench_sparse.certificate.examination import Examination
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.engine.autotune import Speed, for_attacks, recorded
from robustbench_sparse.foundation.errors import contained
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.foundation.streams import derive
from robustbench_sparse.judging.fresh import Fresh
from robustbench_sparse.judging.judge import Judge, JudgeSettings
from robustbench_sparse.judging.relatives import Relatives
from robustbench_sparse.judging.restoration import RestorationJudge
from robustbench_sparse.judging.shifted import ShiftedJudge
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.sparsity.counting import count_macs


def judge_network(
    model: nn.Module,
    place: RunFolder,
    plan: Plan,
    data: PreparedData,
    show: Progress,
    *,
    identity: str,
    title: str,
    kin: Relatives | None = None,
    gate: Callable[[pd.DataFrame], None] | None = None,
    fresh: Fresh | None = None,
) -> None:
    """Judge a network on all shifts and under all attacks of a plan, and certify it where the plan says so.

    Args:
        model: the network in eval mode, on the data's device.
        place: keeps outcomes, certificate, and what was chosen for speed.
        plan: holds shifts, attacks and how to judge.
        data: holds the test images.
        show: where progress goes.
        identity: names the weights and the data set.
        title: of the progress.
        kin: other networks that some attacks and checks need.
        gate: sees the verdicts on clean images before anything is attacked, and may raise.
        fresh: the network as it was before its first query; made here if None.
    """
    c, kin = plan.config.evaluation, kin or Relatives()
    fresh = fresh or Fresh(model)  # before anything asks it
    attacks = [kin.bound(a) for a in plan.attacks]
    x = data.gather("test", torch.arange(min(data.count("test"), 512)))[0]

    def choose() -> Speed:
        random = is_stochastic(model)
        passes = sum(a.attack.cost * (int(getattr(a.attack, "eot", 1)) if random else 1) for a in attacks)
        work = float(passes) * data.count("test") * count_macs(model, data.channels, data.size)
        size = None if c.batch_size == "auto" else c.batch_size
        return for_attacks(model, x, work, precision=c.precision, compile=c.compile, batch_size=size)

    asked = f"attacks {c.precision} {c.compile} {c.batch_size}"
    with contained(f"{title}: measuring its speed"):
        speed = recorded(place.speed, asked, choose)
    settings = JudgeSettings(
        seed=derive(place.seed, "evaluation"),
        batch_size=speed.batch_size,
        draws=c.draws,
        precision=speed.precision,
    )
    judge = Judge(model, data, place.path, settings, identity, show, title, fresh=fresh)
    examination = Examination(judge, attacks, c.certificate, plan.threat, kin)
    shifted = ShiftedJudge(judge)
    done, seen = judge.all_done(attacks) and examination.is_done(), shifted.all_done(plan.shifts)
    if gate is not None or not (done and seen):
        clean = judge.clean()
        if len(clean) < data.count("test"):
            return  # it crashed, and the outcome says how
        if gate is not None:
            gate(clean)
    shifted.everything(plan.shifts)
    if done:
        judge.tidy()
        examination.tidy()
        return
    with contained(f"{title}: compiling it"):
        stand_in, note = speed.stand_in(model, x[: speed.batch_size])
    if note:
        show.note(f"{title}: {note}")
    judge.climb(stand_in)
    judge.everything(attacks)
    examination.make()
    examination.tidy()


BATCH = 256  # images that a restoration network is judged on at once, where the config leaves it open


def judge_restorer(
    model: nn.Module,
    place: RunFolder,
    plan: Plan,
    data: PreparedData,
    show: Progress,
    *,
    identity: str,
    title: str,
) -> None:
    """Judge a restoration network as it is and under all attacks of a plan; arguments as of ``judge_network``."""
    c = plan.config.evaluation
    settings = JudgeSettings(
        seed=derive(place.seed, "evaluation"),
        batch_size=BATCH if c.batch_size == "auto" else c.batch_size,
        draws=c.draws,
    )
    judge = RestorationJudge(model, plan.task, data, place.path, settings, identity, show, title)
    judge.everything(plan.attacks)
