"""Counters that a network keeps of its queries, turned on far beyond what an evaluation asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_sparse.certificate.probes.user import User, as_before, plain

FAR = 1_000_000_000  # queries


def aged(user: User, ask: Callable[[nn.Module], Tensor]) -> Tensor | None:
    """What a fresh copy says whose counters stand where they would after a thousand million queries.

    A counter is a number in an attribute or a buffer of a module, or an entry of a dictionary there, that grows by
    being asked.

    Args:
        user: makes the copies.
        ask: what is asked, (network) -> logits.

    Returns:
        The logits; None where there is no counter, or the network fails with it.
    """
    if not user.changed:
        return None
    x = user.s.x[:1]
    with as_before(x.device), user.network(new=True) as network:
        before = dict(_numbers(network))
        for _ in range(3):
            with user.streams(network, [0], "count"):
                plain(network, x)
        after = dict(_numbers(network))
    growth = {k: after[k] - v for k, v in before.items() if k in after and after[k] != v}
    if not growth:
        return None
    with as_before(x.device), user.network(new=True) as network:
        try:
            for (name, key, entry), step in growth.items():
                _turn(network.get_submodule(name), key, entry, step)
            return ask(network)
        except (Exception, SystemExit):  # such as an index that it counts up
            return None


_Key = tuple[str, str, Any]


def _numbers(network: nn.Module) -> Iterator[tuple[_Key, float]]:
    for name, module in network.named_modules():
        for key, value in [*vars(module).items(), *module.named_buffers(recurse=False)]:
            if key.startswith("_") and key in ("_parameters", "_buffers", "_modules"):
                continue
            if _is_number(value):
                yield (name, key, None), float(value)
            elif isinstance(value, dict):
                yield from (((name, key, k), float(v)) for k, v in value.items() if _is_number(v))
            elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | Tensor | type):
                yield from (((name, key, k), float(v)) for k, v in vars(value).items() if _is_number(v))


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _turn(module: nn.Module, key: str, entry: Any, step: float) -> None:
    """Add to a number what so many queries would, three of which added ``step``."""
    more = step / 3 * FAR
    holder = getattr(module, key)
    if entry is None:
        if isinstance(holder, Tensor):
            with torch.no_grad():
                holder += type(holder.item())(more)
        else:
            setattr(module, key, type(holder)(holder + more))
        return
    table = holder if isinstance(holder, dict) else vars(holder)
    if isinstance(table[entry], Tensor):
        table[entry] = table[entry] + type(table[entry].item())(more)
    else:
        table[entry] = type(table[entry])(table[entry] + more)
