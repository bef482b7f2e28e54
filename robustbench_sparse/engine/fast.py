"""Networks that are quick to attack and to train: bfloat16, channels-last, folded batch-norm, compiled.

What is found on such a stand-in is a claim. ``confirmed`` has it judged in float32 on the network itself, and
attacked again there where the claim does not hold.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.base import (
    Attack,
    RandomModule,
    SampleRandom,
    Silence,
    Threat,
    answer,
    exact_of,
    is_stochastic,
    noise_from,
)
from robustbench_sparse.engine.batchnorm_folding import Stem, fold, pairs_of, replace_layer, stems_of
from robustbench_sparse.engine.overwriting import overwriting_relus
from robustbench_sparse.foundation.errors import one_line
from robustbench_sparse.foundation.files import cache_folder

Precision = Literal["fp32", "bf16"]
_CPU_PART = (
    128  # images; activations of larger batches leave the caches, and their memory is fetched anew each time
)


class FastNetwork(nn.Module):
    """A copy of a network for attacks: eval mode, gradients for the image only, logits in float32.

    Args:
        exact: the network; it stays as it is.
        precision: ``bf16`` runs under bfloat16 autocast.
        compile: compile for gradients with respect to the image. Passes without gradients get a graph of their own
            where an attack asks for thousands of them (``attacks.iterate.questioned``), else they run eagerly, as do
            batches of one image.
        source: the same function in fewer channels or layers, copied in the network's place; the network if None.

    Attributes:
        exact: the network; see ``attacks.base.exact_of``.
        note: why compiling was given up, or an empty string.

    Raises:
        ValueError: when the network cannot be copied.
    """

    exact: nn.Module

    def __init__(
        self,
        exact: nn.Module,
        *,
        precision: Precision = "bf16",
        compile: bool = False,
        source: nn.Module | None = None,
    ) -> None:
        super().__init__()
        # Not a submodule: the network may be in training, and its modes are not this copy's to set.
        self.__dict__["exact"] = exact
        source = exact if source is None else source
        self.__dict__["_source"] = source
        self.precision, self.note = precision, ""
        try:
            twin = copy.deepcopy(source)
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # the network's parts may raise anything, sys.exit too
            raise ValueError(f"the network cannot be copied: {one_line(e)[:160]}") from None
        twin = twin.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        for name in overwriting_relus(source) if not compile else []:
            relu = twin.get_submodule(name)
            assert isinstance(relu, nn.ReLU)
            relu.inplace = True
        self._refresh = fold(twin, pairs_of(source), affine=compile)
        for name in stems_of(source) if precision == "bf16" else []:
            layer = twin.get_submodule(name)
            if name and getattr(layer, "groups", 1) == 1:
                replace_layer(twin, name, Stem(layer))
        self.twin = compiled(twin, lambda x: x.requires_grad) if compile else twin
        self.eval().refresh()

    @property
    def is_compiled(self) -> bool:
        """Whether some part of it runs compiled."""
        return any(isinstance(m, Region) and m.on for m in self.twin.modules())

    @property
    def is_shrunk(self) -> bool:
        """Whether it is a copy of something smaller than the network."""
        return self.__dict__["_source"] is not self.exact

    def refresh(self, source: nn.Module | None = None) -> FastNetwork:
        """Take over the weights as they are now, from what was copied or from a network that takes its place."""
        if source is not None:
            self.__dict__["exact"] = self.__dict__["_source"] = source
        self._refresh(self.__dict__["_source"])
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K), in float32 where the network computes in bfloat16."""
        return _logits(self.twin, x, self.precision)

    def warm_up(self, x: Tensor) -> None:
        """Compile now, for images like ``x`` (B, C, H, W); fall back to eager where that fails."""
        if not self.is_compiled:
            return
        try:
            point = x.detach().clone().requires_grad_(True)
            torch.autograd.grad(self(point).sum(), point)
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # whatever a compiler may raise, the eager network is still there
            self.note = _failed(e)
            switch_off(self.twin)


def _logits(network: nn.Module, x: Tensor, precision: Precision) -> Tensor:
    """A forward pass, channels-last and in a precision; logits in float32 where that is bfloat16."""
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        out: Tensor = network(x)
    return out.float() if out.dtype == torch.bfloat16 else out


def _failed(e: BaseException) -> str:
    return f"compiling failed: {type(e).__name__}: {one_line(e)[:160]}"


class Region(nn.Module):
    """A module that runs compiled under the conditions it was compiled for, else as it is.

    Args:
        module: takes and returns one tensor whose first dimension is the batch.
        wanted: says of an input whether the compiled form is meant for it, in passes with gradients.

    Attributes:
        on: whether compiled forms are used at all.
        asked: whether passes without gradients are to be compiled, too; see ``attacks.iterate.questioned``.
    """

    def __init__(self, module: nn.Module, wanted: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.module, self.on, self.asked = module, True, False
        self._answers = True
        self._wanted = wanted
        self._compiled: Callable[[Tensor], Tensor] = torch.compile(module)

    def forward(self, x: Tensor) -> Tensor:
        """As the module."""
        if self.on and len(x) > 1:
            # Attacks shrink their batch: one graph for all sizes, from the first on.
            if torch.is_grad_enabled():
                if self._wanted(x):
                    torch._dynamo.maybe_mark_dynamic(x, 0)
                    return self._compiled(x)
            elif self.asked and self._answers:
                torch._dynamo.maybe_mark_dynamic(x, 0)
                return self._answer(x)
        out: Tensor = self.module(x)
        return out

    def _answer(self, x: Tensor) -> Tensor:
        """A pass without gradients; eager from now on where it cannot be compiled."""
        try:
            return self._compiled(x)
        except Exception:  # whatever a compiler may raise; the eager network raises its own errors again
            self._answers = False
            out: Tensor = self.module(x)
            return out


def switch_off(model: nn.Module) -> None:
    """Let every compiled part of a network run eagerly from now on."""
    for m in model.modules():
        if isinstance(m, Region):
            m.on = False


def compiled(model: nn.Module, wanted: Callable[[Tensor], bool]) -> nn.Module:
    """A network whose parts without noise are compiled; it shares all layers, weights and modes with ``model``.

    A network that is not random is one part. Noise comes from streams outside the graph, so in a random one the
    parts are the largest modules without noise, such as residual blocks.
    """
    # Compiled code outlives the process; the user's own choice of a place wins.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder(None) / "inductor"))
    if not any(isinstance(m, RandomModule) for m in model.modules()):
        return Region(model, wanted) if len(list(model.children())) else model
    if isinstance(model, RandomModule) or not len(list(model.children())):
        return model
    shell = copy.copy(model)
    shell._modules = {name: m and compiled(m, wanted) for name, m in model._modules.items()}
    return shell


class FastTraining:
    """The forward pass of training: the network's own layers, weights and statistics, compiled on request.

    Args:
        model: the network in training; hooks may go on to use it directly.
        compile: compile forward and backward pass.

    Attributes:
        note: why compiling was given up, or an empty string.
    """

    def __init__(self, model: nn.Module, *, precision: Precision, compile: bool) -> None:
        self.model, self.precision, self.note = model, precision, ""
        self._network = compiled(model, lambda _: model.training) if compile else model

    def __call__(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K), in float32 where the network computes in bfloat16."""
        return _logits(self._network, x, self.precision)

    def warm_up(self, x: Tensor) -> None:
        """Compile now, for minibatches like ``x`` (B, C, H, W); weights, statistics and streams stay untouched."""
        if self._network is self.model:
            return
        buffers = [b.clone() for b in self.model.buffers()]
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        devices = [x.device] if x.device.type == "cuda" else []
        was_training = self.model.training
        try:
            with torch.random.fork_rng(devices), noise_from(self.model, Silence()):
                self.model.train()
                torch.autograd.grad(self(x).sum(), parameters, allow_unused=True)
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # whatever a compiler may raise, the eager network is still there
            self.note = _failed(e)
            self._network = self.model
        finally:
            self.model.train(was_training)
            with torch.no_grad():
                for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                    buffer.copy_(before)


@torch.no_grad()
def logits_in_parts(network: nn.Module, x: Tensor) -> Tensor:
    """Logits (B, K) of images (B, C, H, W), without gradients; on a CPU by parts that fit into its caches.

    A random network gets the whole batch at once: its noise may come from one stream for each image.
    """
    if x.device.type != "cpu" or len(x) <= _CPU_PART or is_stochastic(network):
        return answer(network, x)
    return torch.cat([answer(network, part) for part in torch.split(x, _CPU_PART)])


def unconfirmed(network: nn.Module, candidate: Tensor, y: Tensor, correct: Tensor) -> Tensor:
    """Images that only the stand-in gets wrong: the attack believed to be done there, and was not.

    Args:
        network: a ``FastNetwork``, or any network; one that is no stand-in confirms itself.
        candidate: what the attack returned, (B, C, H, W).
        y: labels (B,).
        correct: the verdicts of the network itself, bool (B,).

    Returns:
        Their numbers within the batch. None where the network is random: there is no single verdict then.
    """
    rows = correct.nonzero().flatten()
    if exact_of(network) is None or is_stochastic(network) or len(rows) == 0:
        return rows[:0]
    return rows[logits_in_parts(network, candidate[rows]).argmax(1) != y[rows]]


# Attacks some rows of a batch on a network: the candidates (R, C, H, W), and the share of draws, in [0, 1], in which
# the network that is judged classifies each of them correctly (R,).
Attempt = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]


def confirmed(attacked: nn.Module, judged: nn.Module, y: Tensor, attempt: Attempt) -> tuple[Tensor, Tensor]:
    """Attack a stand-in, and attack again on the network itself what only the stand-in gets wrong.

    Args:
        attacked: a ``FastNetwork``; the candidates of any other network are taken as they are.
        judged: the network itself.
        y: labels (B,).
        attempt: attacks and judges; called with the rows of the whole batch, then perhaps with some of them.

    Returns:
        Candidates (B, C, H, W) and the shares (B,).
    """
    candidate, correct = attempt(attacked, torch.arange(len(y), device=y.device))
    rows = unconfirmed(attacked, candidate, y, correct == 1)
    if len(rows):
        candidate[rows], correct[rows] = attempt(judged, rows)
    return candidate, correct


def attack_and_confirm(
    attack: Attack, network: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom
) -> tuple[Tensor, Tensor]:
    """``confirmed`` for a single attack and verdicts of one pass.

    Args:
        attack: the attack.
        network: a ``FastNetwork``; another network is attacked and judged as it is.
        x, y: images (B, C, H, W) and labels (B,).
        threat: norm and radius.
        random: the images' random streams.

    Returns:
        Candidates (B, C, H, W) and whether the network itself classifies them correctly, bool (B,).
    """
    exact = exact_of(network) or network
    assert isinstance(exact, nn.Module)

    def attempt(on: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
        streams = random if len(rows) == len(y) else random.subset(rows)
        candidate = attack(on, x[rows], y[rows], threat, streams)
        return candidate, logits_in_parts(exact, candidate).argmax(1) == y[rows]

    return confirmed(network, exact, y, attempt)
