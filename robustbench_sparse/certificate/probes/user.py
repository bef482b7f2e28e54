"""A network asked as those ask it who use it: a copy nobody asked before, one image of whole bytes, no gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from attacks.base import SampleRandom, Threat, answer, noise_from
from robustbench_sparse.certificate.probes.program import Query, used
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.foundation.streams import derive
from robustbench_sparse.judging.fresh import Copy
from robustbench_sparse.judging.judge import inside
from robustbench_sparse.sparsity.counting import count_macs

# From a network and images (B, C, H, W) to logits (B, K).
Way = Callable[[nn.Module, Tensor], Tensor]

LEVELS = 255
AGED = 64  # images that one copy is asked at most
DRAWS = 8  # answers per verdict of a random network
CALL = 2e5  # multiplications that take as long as the call of a layer
_ROUNDING = 1e-3  # of a level


def plain(network: nn.Module, x: Tensor) -> Tensor:
    """The answer, without gradients."""
    with torch.no_grad():
        return answer(network, x)


@contextlib.contextmanager
def as_before(device: torch.device) -> Iterator[None]:
    """torch's generators go on after a block as if it had not been."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def reseed(seed: int, device: torch.device) -> None:
    """Start torch's generators from a seed."""
    # Not torch.manual_seed: without a GPU at work it keeps a note of every call.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def on_grid(candidate: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Images that a file of 8 bits can hold, near a candidate and inside the ball; all (B, C, H, W).

    For l_inf the nearest such image. For l2 every value is rounded towards the clean one, which must be of whole
    bytes itself. Where no such image lies in the ball the clean one is returned.
    """
    if threat.norm == "linf":
        low = (LEVELS * (x - threat.eps) - _ROUNDING).ceil().clamp_min(0)
        high = (LEVELS * (x + threat.eps) + _ROUNDING).floor().clamp_max(LEVELS)
        whole = torch.minimum(torch.maximum((LEVELS * candidate).round(), low), high) / LEVELS
    else:
        delta = LEVELS * (threat.project(candidate, x) - x)
        whole = ((LEVELS * x).round() + (delta + _ROUNDING * delta.sign()).trunc()).clamp(0, LEVELS) / LEVELS
    legal = inside(threat, whole - x)
    return torch.where(legal.view(-1, 1, 1, 1), whole, x)


class User:
    """Asks fresh copies of a subject's network.

    Args:
        s: the subject. Where its network cannot be copied it is asked itself.

    Attributes:
        s: the subject.
        draws: answers per verdict: ``DRAWS`` of a random network, else 1.
    """

    def __init__(self, s: Subject) -> None:
        self.s = s
        self.draws = min(s.draws, DRAWS)
        self._spare: Copy | None = None
        self._uses = 0

    @classmethod
    def of(cls, s: Subject) -> User:
        """The subject's user: the same one for every check."""
        if "_user" not in s.__dict__:
            s.__dict__["_user"] = cls(s)
        user: User = s.__dict__["_user"]
        return user

    # Copies ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def network(self, new: bool = False) -> Iterator[nn.Module]:
        """A copy nobody has asked, for the length of a block; one that was asked a little, where that leaves no trace.

        Args:
            new: insist on a new one.
        """
        fresh = self.s.fresh
        if fresh.why:
            yield self.s.model
            return
        made, self._spare = self._spare, None
        if made is None or new or self.changed or self._uses >= AGED:
            made, self._uses = fresh.make(self.s.x.device, self._keeps_weights), 0
        with fresh.inside(made) as network:
            yield network
        self._spare, self._uses = made, self._uses + 1

    @cached_property
    def changed(self) -> list[str]:
        """Places in a copy that are not as they were once it was asked in several ways; or one entry, ``unknown``."""
        if self.s.fresh.why:
            return ["unknown"]
        x, size = self.s.x[:4], min(self.s.threat.eps, 1.0)

        def ask(network: nn.Module) -> None:
            near = (x + size * torch.where(x < 0.5, 1.0, -1.0)).clamp(0, 1)
            for image in torch.split(torch.cat([x, near]), 1):
                with self.streams(network, [0], "use"):
                    plain(network, image)
            with self.streams(network, range(len(x)), "use"):
                plain(network, near)
                with contextlib.suppress(RuntimeError), torch.enable_grad():
                    point = near.clone().requires_grad_(True)
                    network(point).sum().backward()

        try:
            with as_before(x.device):
                return [k for k in self.s.fresh.changed_by(ask, x.device) if not k.endswith("noise_source")]
        except (Exception, SystemExit):  # whatever a foreign network's parts raise
            return ["unknown"]

    @property
    def random(self) -> bool:
        """Whether the network draws noise and says so."""
        return self.s.stochastic

    @cached_property
    def _keeps_weights(self) -> bool:
        names = {k for k, _ in self.s.model.named_parameters()}
        return not names & set(self.changed) and "unknown" not in self.changed

    @cached_property
    def pass_cost(self) -> float:
        """Multiplications that take about as long as one image asked alone, the copy that it needs included."""
        with self.network() as network:
            layers = sum(1 for _ in network.modules())
            try:
                macs = count_macs(network, *self.s.x.shape[1:3])
            except (Exception, SystemExit):  # such as a network that takes no image of zeros
                macs = 50 * sum(p.numel() for p in network.parameters())
        return macs + CALL * layers * (3 if self.changed else 1)

    def affordable(self, share: float) -> int:
        """How many images may be asked alone for a share of the budget."""
        return int(share * self.s.budget.use / self.pass_cost)

    # Asking ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def streams(self, network: nn.Module, index: Sequence[int], name: str) -> Iterator[None]:
        """The images' noise of a name for a network that says that it is random; torch's generator starts anew, too."""
        reseed(derive(self.s.seed, f"use/{name}"), self.s.x.device)
        if self.random:
            with noise_from(network, SampleRandom.for_images(self.s.seed, f"use/{name}", index)):
                yield
        else:
            yield

    def alone(
        self, x: Tensor, index: Sequence[int], way: Way | None = None, name: str = "ask", every: int = 1
    ) -> Tensor:
        """Logits (B, K) of images that are each asked alone, of a copy nobody asked anything like it before.

        Args:
            x: images (B, C, H, W).
            index: numbers of their noise's streams.
            way: how they are asked; by a program that uses the network if None.
            name: of the streams.
            every: so many images are asked of a copy, where being asked leaves a trace in it.
        """
        if len(x) == 0:
            return self.s.x.new_zeros(0, self.s.classes)

        def queries() -> Iterator[Query]:
            size = every if self.changed else AGED
            for start in range(0, len(x), size):
                with self.network() as network:
                    for i in range(start, min(start + size, len(x))):
                        yield network, x[i : i + 1], partial(self.streams, network, [index[i]], name)

        with as_before(self.s.x.device):
            if way is None:
                return torch.cat(used(queries(), hide=bool(self.s.fresh.spaces)))
            out: list[Tensor] = []
            for network, image, prepared in queries():
                with prepared():
                    out.append(way(network, image.clone()).detach())
        return torch.cat(out)

    def together(self, parts: Sequence[tuple[Tensor, Sequence[int]]], name: str = "ask") -> list[Tensor]:
        """Logits of batches, each asked at once of a copy nobody asked before."""
        out: list[Tensor] = []
        with as_before(self.s.x.device):
            for x, index in parts:
                with self.network() as network, self.streams(network, index, name):
                    out.append(plain(network, x))
        return out

    def correct(self, x: Tensor, rows: Tensor, logits: list[Tensor] | None = None) -> Tensor:
        """Share of answers that are right, each image asked alone; logits that are not finite count as right, (R,).

        Args:
            x: images of some of the subject's rows, (R, C, H, W).
            rows: these rows, (R,).
            logits: gets the mean logits (R, K) of these images, if given.
        """
        index, y = self.s.indices(rows), self.s.y[rows]
        total, mean = (
            torch.zeros(len(x), device=x.device),
            torch.zeros(len(x), self.s.classes, device=x.device),
        )
        for k in range(self.draws):
            out = self.alone(x, index, name=f"verdict {k}").float()
            total += (out.argmax(1) == y) | ~out.isfinite().all(1)
            mean += out / self.draws
        if logits is not None:
            logits.append(mean)
        return total / self.draws
