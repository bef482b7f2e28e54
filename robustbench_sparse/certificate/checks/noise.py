"""Checks R: is the network random, do its verdicts depend on the batch, and does the noise hide its gradients?

Croce & Hein 2020 (AutoAttack's check of randomised defenses), Carlini et al. 2019
(https://arxiv.org/abs/1902.06705) on frozen noise, Athalye, Engstrom, Ilyas, Kwok 2018
(https://arxiv.org/abs/1707.07397) on expectation over transformation (EOT).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from attacks.apgd import APGD
from attacks.base import NoiseOff, RandomModule, SampleRandom, answer, noise_from
from attacks.pgd import PGD
from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.subject import Attacked, Subject
from robustbench_sparse.foundation.streams import derive

REPEATS, SAME = 5, 1e-4
BATCHES, ALONE = (32, 200), 16  # R2; images sent through one by one
CONVERGED = 0.01  # R3: share of images
EOT_STEPS = 10
LEAST_DRAWS, ASTRAY = 100, 0.05  # R4: share of single draws that may lie outside


@contextlib.contextmanager
def _global_noise(s: Subject, name: str) -> Iterator[None]:
    """Seed torch's global generators for a block and put them back: foreign networks draw from them."""
    devices = [s.x.device] if s.x.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive(s.seed, f"certificate/{name}"))
        yield


def _pass(s: Subject, x: Tensor, source: SampleRandom | None) -> Tensor:
    """Logits of one batch as it is, in float64 on the CPU, (B, K)."""
    with torch.no_grad(), noise_from(s.model, source):
        return answer(s.model, x).double().cpu()


def _bound(s: Subject) -> bool:
    """Whether all noise that the network is known to draw comes from a source that can be bound."""
    return s.stochastic and any(isinstance(m, RandomModule) for m in s.model.modules())


DETERMINISTIC = "the network is not random"
ELSEWHERE = "the network draws its noise from torch's global generator, where it can neither be held fixed nor silenced"


def randomness_is_declared(s: Subject) -> Finding:
    """The same images, again and again."""
    rows = torch.arange(min(len(s), s.batch_size))
    if len(rows) == 0:
        return skipped("no images")
    with _global_noise(s, "r1"):
        logits = torch.stack([_pass(s, s.x[rows], None) for _ in range(REPEATS)])
    unit = logits / logits.norm(dim=2, keepdim=True).clamp_min(1e-10)
    difference = (unit[:, None] - unit[None]).norm(dim=3).max().item()
    correct = (logits.argmax(2) == s.y[rows].cpu()).double().mean(1)
    random = difference > SAME or bool((correct != correct[0]).any())
    done = f"{REPEATS} passes of the same {len(rows)} images, noise unbound"
    measured: dict[str, Value] = {
        "largest_difference": difference,
        "clean_acc": correct.tolist(),
        "random": random,
        "declared": s.stochastic,
    }
    return ruled(s.stochastic or not random, done, measured)


RANDOMNESS_IS_DECLARED = Check(
    id="R1",
    title="A random network says that it is random",
    source="AutoAttack's check of randomised defenses (Croce & Hein 2020): 5 repeats, 1e-4",
    rule=(
        "Five passes of the same images give the same accuracy, and logits of length 1 that differ by at most "
        "1e-4; or the network declares itself random (stochastic = True, or a RandomModule)."
    ),
    meaning="The network is random and was attacked as if it were not: no gradient and no verdict was averaged.",
    advice="Draw the noise in a RandomModule, or set stochastic = True on the network, and judge it again.",
    run=randomness_is_declared,
)


def batch_does_not_matter(s: Subject) -> Finding:
    """One image in several batches."""
    if len(s) == 0:
        return skipped("no images")
    if s.stochastic and not _bound(s):
        return skipped(ELSEWHERE)
    everything = torch.arange(len(s))

    def logits(rows: Tensor) -> Tensor:
        # Streams made anew: an image has the same noise in every batch. Rows may repeat.
        index = s.index[rows]
        random = SampleRandom.for_images(s.seed, "certificate/r2", index.tolist())
        return _pass(s, s.x[rows.to(s.x.device)], random)

    with _global_noise(s, "r2"):
        base = torch.cat([logits(part) for part in torch.split(everything, BATCHES[0])])
        again = torch.cat([logits(part) for part in torch.split(everything, BATCHES[0])])
        allowed = SAME * max(1.0, base.abs().max().item())
        if (again - base).abs().max().item() > allowed:
            return skipped("the same batch gives different logits each time, noise held fixed: see R1")
        alone = everything[:ALONE]
        generator = torch.Generator().manual_seed(derive(s.seed, "certificate/r2"))
        order = torch.randperm(len(s), generator=generator)
        many = torch.arange(BATCHES[1]) % len(s)
        found = {
            "alone": torch.cat([logits(row) for row in torch.split(alone, 1)]) - base[alone],
            "permuted": torch.cat([logits(part) for part in torch.split(order, BATCHES[0])]) - base[order],
            "large": logits(many) - base[many],
        }
    differences: dict[str, Value] = {f"{name}_difference": d.abs().max().item() for name, d in found.items()}
    worst = max(d.abs().max().item() for d in found.values())
    done = (
        f"{len(alone)} images alone, all {len(s)} by {BATCHES[0]} in two orders and in a batch of {BATCHES[1]}, each "
        "image with one fixed noise"
    )
    return ruled(worst <= allowed, done, {**differences, "allowed": allowed})


BATCH_DOES_NOT_MATTER = Check(
    id="R2",
    title="A prediction does not depend on the batch",
    source="this project's, after the published EnResNet code, whose noise is scaled by the whole batch",
    rule=(
        "An image's logits, its noise held fixed, differ by at most 1e-4 (of the largest logit, where that is "
        "above 1) between batches of 1, 32 and 200 images and orders of them."
    ),
    meaning="Attacked in one batch and judged in another, an image meets another network.",
    advice="Take statistics of each image alone (EnResNet: scale: sample; batch-norm in eval mode).",
    run=batch_does_not_matter,
)


def gradient_draws_suffice(s: Subject) -> Finding:
    """More draws for each gradient."""
    if not s.stochastic:
        return skipped(DETERMINISTIC)
    rows = s.few
    if len(rows) == 0 or s.threat.eps == 0:
        return skipped("no image is classified right" if len(rows) == 0 else "eps is 0")
    counts = [max(1, s.eot // 2), s.eot, 2 * s.eot]
    with _global_noise(s, "r3"):
        found = [
            s.attack(PGD(steps=EOT_STEPS, loss="margin", eot=count), "r3", rows=rows) for count in counts
        ]
    fall = found[-2].accuracy - found[-1].accuracy
    done = f"PGD-{EOT_STEPS} on the margin with {counts} gradients a step on {len(rows)} images"
    measured: dict[str, Value] = {
        "eot": counts,
        "acc": [f.accuracy for f in found],
        "tau": s.tau(found[-2].correct, found[-1].correct),
    }
    return ruled(fall < CONVERGED or not s.exceeds(found[-2].correct, found[-1].correct), done, measured)


GRADIENT_DRAWS_SUFFICE = Check(
    id="R3",
    title="enough draws for each gradient",
    source="this project's: the EOT draws are doubled twice",
    rule=(
        "From the draws used to twice as many, robust accuracy falls by less than 1 point, or by no more than the "
        "paired interval's half width."
    ),
    meaning="The averaged gradient is still mostly noise: attacks with more draws would find more.",
    advice="Raise eot until nothing changes.",
    run=gradient_draws_suffice,
)


def verdict_draws_suffice(s: Subject) -> Finding:
    """Many draws for each verdict."""
    if not s.stochastic:
        return skipped(DETERMINISTIC)
    if len(s) == 0:
        return skipped("no images")
    draws, x = max(LEAST_DRAWS, s.draws), s.white.candidate
    random = s.random("r4")
    with _global_noise(s, "r4"):
        correct = torch.stack([s.logits(x, random).argmax(1) == s.y for _ in range(draws)]).float()
    mean = correct.mean(0)
    gaps = (correct - mean).mean(1)
    astray = sum(abs(float(g)) > s.tau(one, mean) for g, one in zip(gaps, correct, strict=True)) / draws
    done = f"{draws} fresh draws on the white box's candidates for {len(s)} images"
    measured: dict[str, Value] = {
        "mean_acc": mean.mean().item(),
        "majority_acc": (mean > 0.5).float().mean().item(),
        "single_acc": correct[0].mean().item(),
        "lowest_single_acc": correct.mean(1).min().item(),
        "highest_single_acc": correct.mean(1).max().item(),
        "outside_tau_share": astray,
    }
    return ruled(astray <= ASTRAY, done, measured)


VERDICT_DRAWS_SUFFICE = Check(
    id="R4",
    title="the number is not one of lucky draws",
    source="this project's",
    rule=(
        "Of at least 100 passes over the white box's candidates, at most 5 % have an accuracy that differs from "
        "their mean by more than the paired interval's half width. The majority vote's is reported."
    ),
    meaning="A single pass says little: the draws of all images move together, or depend on each other.",
    advice="Give every image noise of its own, and judge by the mean of many draws.",
    run=verdict_draws_suffice,
)


class Frozen(nn.Module):
    """A random network whose noise is one fixed set of tensors for each image of a batch.

    It stays declared as random, so that attacks keep every image in the batch and rows stay in order.

    Args:
        network: the network.
        seed, index: of the images' noise; equal ones give equal noise.
    """

    def __init__(self, network: nn.Module, seed: int, index: Sequence[int]) -> None:
        super().__init__()
        self.network, self.seed, self.index = network, seed, list(index)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) of the batch it was made for -> logits (B, K)."""
        with noise_from(self.network, SampleRandom.for_images(self.seed, "certificate/frozen", self.index)):
            out: Tensor = self.network(x)
        return out


def _white(s: Subject, eot: int) -> APGD:
    return APGD(steps=s.budget.steps, loss="margin", eot=eot)


def known_noise_hides_nothing(s: Subject) -> Finding:
    """The noise frozen, then on again.

    With its noise frozen the network is an ordinary one, and its gradients are exact. Two things may be expected of
    noise that hides nothing. An attacker who knows the noise does at least as well as against the network without
    any. And candidates made for one noise are, once it is switched on, no better than those of the attack that
    averages over it: what the images recover then is what the noise is worth, and an honest defense keeps it.
    """
    if not s.stochastic:
        return skipped(DETERMINISTIC)
    if not _bound(s):
        return skipped(ELSEWHERE)
    rows = s.few
    if len(rows) == 0 or s.threat.eps == 0:
        return skipped("no image is classified right" if len(rows) == 0 else "eps is 0")
    white = s.white.correct[rows]
    candidate, frozen = _attacked(s, rows, lambda part: Frozen(s.model, s.seed, s.indices(part)))
    on = Attacked(candidate, s.judged(candidate, "r5", rows))
    s.note(rows, on.candidate, on.correct)
    quiet = NoiseOff(s.model)
    _, off = _attacked(s, rows, lambda _: quiet)
    hidden, missed = s.exceeds(frozen, off), s.exceeds(white, on.correct)
    measured: dict[str, Value] = {
        "frozen_acc": frozen.mean().item(),
        "noise_off_acc": off.mean().item(),
        "frozen_then_on_acc": on.accuracy,
        "white_acc": white.mean().item(),
        "tau_off": s.tau(frozen, off),
        "tau_on": s.tau(white, on.correct),
    }
    done = f"APGD on the margin, {s.budget.steps} steps, with the noise frozen and with none, on {len(rows)} images"
    return ruled(not hidden and not missed, done, measured)


KNOWN_NOISE_HIDES_NOTHING = Check(
    id="R5",
    title="noise that is known hides nothing",
    source="Carlini et al. 2019 (fix the randomness, then switch it on); the rules are this project's",
    rule=(
        "By no more than the paired interval's half width: robust accuracy with frozen noise is above that without "
        "noise, and the white box's is above that of the frozen network's candidates once the noise is on."
    ),
    meaning="The noise hides gradients: an attack fails even where it knows the noise, or averaging misleads it.",
    advice="Attack the network without noise and transfer; average over more draws; attack without gradients.",
    run=known_noise_hides_nothing,
)


def _attacked(s: Subject, rows: Tensor, network_for: Callable[[Tensor], nn.Module]) -> tuple[Tensor, Tensor]:
    """Candidates (R, C, H, W) made on a surrogate of each part of the rows, and whether that withstands them, (R,)."""
    candidates, correct = [], []
    for part in torch.split(rows, s.batch_size):
        x, y, network = s.x[part], s.y[part], network_for(part)
        found = s.threat.project(_white(s, 1)(network, x, y, s.threat, s.random("r5", part)), x)
        candidates.append(found)
        with torch.no_grad():
            correct.append((network(found.clone()).argmax(1) == y).float())
    return torch.cat(candidates), torch.cat(correct)


def noise_off_is_no_better_guide(s: Subject) -> Finding:
    """Transfer from the network without its noise."""
    if not s.stochastic:
        return skipped(DETERMINISTIC)
    if not _bound(s):
        return skipped(ELSEWHERE)
    rows = s.few
    if len(rows) == 0 or s.threat.eps == 0:
        return skipped("no image is classified right" if len(rows) == 0 else "eps is 0")
    moved = s.attack(_white(s, 1), "r6", rows=rows, on=NoiseOff(s.model))
    white = s.white.correct[rows]
    measured: dict[str, Value] = {
        "transfer_acc": moved.accuracy,
        "white_acc": white.mean().item(),
        "tau": s.tau(white, moved.correct),
    }
    done = f"APGD on the margin, {s.budget.steps} steps, on the network without noise, on {len(rows)} images"
    return ruled(not s.exceeds(white, moved.correct), done, measured)


NOISE_OFF_IS_NO_BETTER_GUIDE = Check(
    id="R6",
    title="the network without its noise is no better guide",
    source="this project's",
    rule=(
        "Accuracy on candidates made on the network with its noise off is not below the white box's by more than "
        "the paired interval's half width."
    ),
    meaning="The noise masks gradients: an attack that ignores it finds more than the one that averages over it.",
    advice="Report the lower number, and raise eot.",
    run=noise_off_is_no_better_guide,
)


CHECKS: tuple[Check, ...] = (
    RANDOMNESS_IS_DECLARED,
    BATCH_DOES_NOT_MATTER,
    GRADIENT_DRAWS_SUFFICE,
    VERDICT_DRAWS_SUFFICE,
    KNOWN_NOISE_HIDES_NOTHING,
    NOISE_OFF_IS_NO_BETTER_GUIDE,
)
