"""The other side: torchattacks and foolbox as their users call them, and loops as the papers' code writes them.

All get the network in float32 and the plain memory layout, in eval mode for attacks.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable
from importlib import metadata

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Maps images (B, C, H, W) and labels (B,) to candidates (B, C, H, W).
Peer = Callable[[Tensor, Tensor], Tensor]


def installed(name: str) -> bool:
    """Whether a peer's package is there (the extra ``bench`` brings them)."""
    return importlib.util.find_spec(name) is not None


def version(name: str) -> str:
    """A package's version, or that it is not there."""
    return metadata.version(name) if installed(name) else "not installed"


def torchattacks_pgd(model: nn.Module, *, eps: float, alpha: float, steps: int) -> Peer:
    """torchattacks.PGD."""
    import torchattacks

    attack: Peer = torchattacks.PGD(model, eps=eps, alpha=alpha, steps=steps, random_start=True)
    return attack


def torchattacks_autoattack(model: nn.Module, *, eps: float, classes: int, queries: int) -> Peer:
    """torchattacks.AutoAttack, l_inf, the standard ensemble; as it comes where ``queries`` are 5000."""
    import torchattacks

    ensemble = torchattacks.AutoAttack(model, norm="Linf", eps=eps, n_classes=classes, seed=0)
    ensemble._autoattack.attacks[-1].n_queries = queries
    attack: Peer = ensemble
    return attack


def original_autoattack(
    model: nn.Module, *, eps: float, batch: int, queries: int, device: torch.device
) -> Peer:
    """AutoAttack as its authors wrote it (github.com/fra31/auto-attack), l_inf, the standard ensemble.

    As it comes where ``queries`` are 5000.
    """
    import autoattack

    ensemble = autoattack.AutoAttack(
        model, norm="Linf", eps=eps, version="standard", seed=0, verbose=False, device=str(device)
    )

    ensemble.square.n_queries = queries

    def run(x: Tensor, y: Tensor) -> Tensor:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its checks
            found: Tensor = ensemble.run_standard_evaluation(x, y, bs=batch)
        return found

    return run


def foolbox_pgd(model: nn.Module, *, eps: float, alpha: float, steps: int) -> Peer:
    """foolbox's LinfPGD; the clipped candidates, which lie in the ball."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=alpha, steps=steps, random_start=True)

    def run(x: Tensor, y: Tensor) -> Tensor:
        clipped: Tensor = attack(wrapped, x, y, epsilons=eps)[1]
        return clipped

    return run


def plain_pgd(model: nn.Module, *, eps: float, alpha: float, steps: int) -> Peer:
    """PGD as papers' code writes it."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_(True)
            loss = F.cross_entropy(model(x_adv), y)
            (grad,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + alpha * grad.sign()
            x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
        return x_adv.detach()

    return run


PGD: dict[str, Callable[..., Peer]] = {
    "torchattacks": torchattacks_pgd,
    "foolbox": foolbox_pgd,
    "plain loop": plain_pgd,
}


def torchattacks_cw(model: nn.Module, steps: int) -> Peer:
    """torchattacks.CW with its default weight c = 1; it stops early where its cost rises."""
    import torchattacks

    attack: Peer = torchattacks.CW(model, steps=steps)
    return attack


def foolbox_cw(model: nn.Module, steps: int) -> Peer:
    """foolbox's L2CarliniWagnerAttack with one search, at torchattacks' weight 1, and all steps taken.

    Where it finds nothing it returns a black image, which most networks get wrong; the clean image takes its
    place, as in the other attacks.
    """
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=1, steps=steps, initial_const=1.0, abort_early=False
    )

    def run(x: Tensor, y: Tensor) -> Tensor:
        raw: Tensor = attack(wrapped, x, y, epsilons=None)[0]
        return torch.where(raw.flatten(1).any(1).view(-1, 1, 1, 1), raw, x)

    return run


CW: dict[str, Callable[[nn.Module, int], Peer]] = {"torchattacks": torchattacks_cw, "foolbox": foolbox_cw}


def adversarial_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    batch: int,
    eps: float,
    steps: int,
    after_step: Callable[[], object] = lambda: None,
) -> None:
    """One epoch of PGD adversarial training as the papers' code writes it: fp32, attack in eval mode."""
    attack = plain_pgd(model, eps=eps, alpha=2.5 * eps / steps, steps=steps)
    order = torch.randperm(len(y), device=y.device)
    for start in range(0, len(y), batch):
        index = order[start : start + batch]
        model.eval()
        x_adv = attack(x[index], y[index])
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x_adv), y[index]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        after_step()


@torch.no_grad()
def rgsm_update_by_channel(
    weights: list[Tensor], u: list[Tensor], *, lr: float, beta: float, lam: float
) -> None:
    """RGSM's coupling and its proximal map (group l0), channel by channel as the papers' code writes them."""
    threshold = (2 * lam / beta) ** 0.5
    for w, v in zip(weights, u, strict=True):
        w.sub_(lr * beta * (w - v))
        for channel in range(w.shape[1]):
            if w[:, channel].norm().item() > threshold:
                v[:, channel] = w[:, channel]
            else:
                v[:, channel] = 0
