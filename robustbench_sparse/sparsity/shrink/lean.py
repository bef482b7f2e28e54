"""Zeros that pay: what attacks may climb on in the place of a network with dead channels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robustbench_sparse.engine.autotune import AskedEngine
from robustbench_sparse.foundation.errors import MissingExtra, UserError, one_line
from robustbench_sparse.sparsity.counting import count_macs
from robustbench_sparse.sparsity.shrink.proof import differences
from robustbench_sparse.sparsity.shrink.surgery import shrink_network

PAYS = 0.8  # the share of the multiply-accumulates that may be left at most; below it, time falls, too
PROOF_IMAGES = 64
MOST_CHANNELS = (
    50_000  # of a network that surgery is tried on: so many take it 8 s on one core of an AMD EPYC
)


@dataclass(frozen=True, kw_only=True)
class Lean:
    """A network to attack in another one's place.

    Attributes:
        model: it, in eval mode on the device of the network; None for the network itself.
        macs_left: its multiply-accumulates, as a share of the network's.
        why: why there is none; empty where there is.
    """

    model: nn.Module | None = None
    macs_left: float = 1.0
    why: str = ""


def lean(model: nn.Module, x: Tensor, engine: AskedEngine = "auto") -> Lean:
    """Remove the dead channels, count whether that pays, and prove that the function stays the same.

    The choice is made by counting, not by a clock: it is the same on every machine.

    Args:
        model: the network in eval mode; it stays as it is.
        x: images (B, C, S, S) on its device; the proof takes the first ``PROOF_IMAGES``.
        engine: ``auto`` wants at most ``PAYS`` of the multiply-accumulates left, ``shrunk`` fewer than there were,
            ``dense`` nothing.

    Raises:
        MissingExtra: ``shrunk`` was asked for, and torch-pruning is not installed.
    """
    if engine == "dense":
        return Lean(why="not asked for")
    try:
        return _proven(model, x[:PROOF_IMAGES], PAYS if engine == "auto" else 1.0)
    except MissingExtra as e:
        if engine == "shrunk":
            raise
        return Lean(why=str(e))
    except UserError as e:
        return Lean(why=str(e))
    except Exception as e:  # a foreign network may not bear it; then it is attacked as it is
        return Lean(why=f"{type(e).__name__}: {one_line(e)[:160]}")


def _proven(model: nn.Module, x: Tensor, most_left: float) -> Lean:
    small = shrink_network(model, x, MOST_CHANNELS)
    if not small.removed:
        return Lean(why="it has no dead channels that could be removed")
    macs, left = (count_macs(network, x.shape[1], x.shape[2]) for network in (model, small.model))
    share = left / macs if macs else 1.0
    if share >= 1 or share > most_left:
        return Lean(why=f"without its dead channels {100 * share:.0f} % of the multiply-accumulates are left")
    worst, allowed = differences(model, small.model, x)
    if not worst <= allowed:
        return Lean(
            why=f"without its dead channels its logits are off by {worst:.1e}, {allowed:.1e} is allowed"
        )
    return Lean(model=small.model, macs_left=share)
