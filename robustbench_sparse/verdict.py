"""One network judged: how fast it may be attacked, its outcomes, its certificate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor, nn

from attacks.base import is_stochastic
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.examination import Examination
from robustbench_sparse.config.plan import AttackPlan, Plan
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.engine.autotune import (
    SMALL_WORK,
    TOO_LITTLE,
    AskedCompile,
    Engine,
    Speed,
    for_attacks,
    known,
    recorded,
)
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
from robustbench_sparse.sparsity.shrink.lean import Lean, lean

_SAMPLE = 512


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
    # Before anything asks it; only checks look at it as it was.
    fresh = fresh or Fresh(None if c.certificate == "off" else model)
    attacks = [kin.bound(a) for a in plan.attacks]
    x = _sample(data)

    @functools.cache
    def shrunk() -> Lean:
        return lean(model, x, c.engine)

    def choose() -> Speed:
        return _of_attacks(model, plan, data, attacks, x, shrunk)

    with contained(f"{title}: measuring its speed"):
        speed = recorded(place.speed, _asked(plan), choose)
    settings = _settings(place, plan, speed)
    judge = Judge(model, data, place.path, settings, identity, show, title, fresh=fresh)
    with contained(f"{title}: measuring its speed"):
        examined = _of_checks(model, place, plan, data, speed, x)
    examination = Examination(
        judge, attacks, c.certificate, plan.threat, kin, c.certificate_seconds, examined, c.checks
    )
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
        source = shrunk() if _shrinks(plan, speed) else Lean()
        if source.why:
            show.note(f"{title}: attacked as it is: {source.why}")
        stand_in, note = speed.stand_in(model, x[: speed.batch_size], source.model)
    if note:
        show.note(f"{title}: {note}")
    judge.climb(stand_in)
    judge.everything(attacks)
    examination.make()
    examination.tidy()


def help_judging(
    model: nn.Module,
    place: RunFolder,
    plan: Plan,
    data: PreparedData,
    show: Progress,
    *,
    identity: str,
    title: str,
    kin: Relatives | None = None,
) -> bool:
    """Make shards of the attack that another process has at work on a network; arguments as of ``judge_network``.

    Returns:
        Whether there was a shard that nobody was at.
    """
    speed = known(place.speed, _asked(plan))
    if speed is None:  # the other process has not come so far
        return False
    attacks = [(kin or Relatives()).bound(a) for a in plan.attacks]
    settings = _settings(place, plan, speed)
    judge = Judge(model, data, place.path, settings, identity, show, title, fresh=Fresh(None))
    if not judge.has_shards(attacks):
        return False
    x = _sample(data)
    source = lean(model, x, plan.config.evaluation.engine) if _shrinks(plan, speed) else Lean()
    judge.climb(speed.stand_in(model, x[: speed.batch_size], source.model)[0])
    return judge.help(attacks)


def _sample(data: PreparedData) -> Tensor:
    """The images on which speed is measured, and networks are held against their shrunk and compiled forms."""
    return data.gather("test", torch.arange(min(data.count("test"), _SAMPLE)))[0]


def _asked(plan: Plan) -> str:
    """The name under which the choice of speed is recorded."""
    c = plan.config.evaluation
    asked = f"attacks {c.precision} {c.compile} {c.batch_size}"
    return asked if c.engine == "auto" else f"{asked} {c.engine}"


def _settings(place: RunFolder, plan: Plan, speed: Speed) -> JudgeSettings:
    return JudgeSettings(
        seed=derive(place.seed, "evaluation"),
        batch_size=speed.batch_size,
        draws=plan.config.evaluation.draws,
        precision=speed.precision,
        shards=plan.config.evaluation.shards,
    )


def _shrinks(plan: Plan, speed: Speed) -> bool:
    """Whether attacks climb on the network without its dead channels."""
    return "shrunk" in (plan.config.evaluation.engine, speed.engine)


def _of_attacks(
    model: nn.Module,
    plan: Plan,
    data: PreparedData,
    attacks: Sequence[AttackPlan],
    x: Tensor,
    shrunk: Callable[[], Lean],
) -> Speed:
    """How a row's attacks may climb: on the network or without its dead channels, and how quickly."""
    c, random = plan.config.evaluation, is_stochastic(model)
    passes = sum(a.attack.cost * (int(getattr(a.attack, "eot", 1)) if random else 1) for a in attacks)
    work = float(passes) * data.count("test") * count_macs(model, data.channels, data.size)
    small = shrunk() if c.engine == "shrunk" or work >= SMALL_WORK else Lean()
    climbed, work = small.model or model, work * small.macs_left
    size = None if c.batch_size == "auto" else c.batch_size
    speed = for_attacks(climbed, x, work, precision=c.precision, compile=c.compile, batch_size=size)
    engine: Engine = "dense" if small.model is None else "shrunk"
    return replace(speed, engine=engine, macs_left=small.macs_left)


def _of_checks(
    model: nn.Module, place: RunFolder, plan: Plan, data: PreparedData, speed: Speed, x: Tensor
) -> Speed | None:
    """How the certificate may climb where the row's own attacks are too little work to measure; None: as they do."""
    c = plan.config.evaluation
    if c.certificate == "off" or speed.reason != TOO_LITTLE:
        return None

    def choose() -> Speed:
        budget, random = BUDGETS[c.certificate], is_stochastic(model)
        images = budget.random_images * budget.eot if random else budget.images
        work = float(images) * budget.passes * count_macs(model, data.channels, data.size)
        # Compiling pays where it is kept for many rows, which nobody has asked for here.
        compile: AskedCompile = "off" if c.compile == "auto" else c.compile
        size = speed.batch_size
        return for_attacks(model, x, work, precision=c.precision, compile=compile, batch_size=size)

    return recorded(place.speed, f"certificate {c.certificate} {c.precision} {c.compile}", choose)


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
