"""A network as it was before a check, whatever broke that check off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@contextlib.contextmanager
def unharmed(model: nn.Module) -> Iterator[None]:
    """Put back hooks, modes, what asks for gradients, and whether gradients are on, where a block ends by raising.

    Blocks tidy up behind themselves; one that is broken off anywhere may not have come to that.
    """
    modules = list(model.modules())
    hooks = [{name: dict(getattr(m, name)) for name in HOOKS} for m in modules]
    modes = [m.training for m in modules]
    asking = [(p, p.requires_grad) for p in model.parameters()]
    grad = torch.is_grad_enabled()
    try:
        yield
    except BaseException:
        for m, known, mode in zip(modules, hooks, modes, strict=True):
            for name, before in known.items():
                now = getattr(m, name)
                for key in [k for k in now if k not in before]:
                    del now[key]
            m.training = mode
        for p, wanted in asking:
            if p.requires_grad != wanted:
                p.requires_grad_(wanted)
        torch.set_grad_enabled(grad)
        raise
