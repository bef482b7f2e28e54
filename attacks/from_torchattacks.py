"""Any attack of the library torchattacks (Kim 2020, https://arxiv.org/abs/2010.01950), where it is installed.

What is said here about single attacks was read off the source of version 3.5.1.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.base import (
    Attack,
    GeneratorNoise,
    SampleRandom,
    Threat,
    check,
    check_candidate,
    is_stochastic,
    noise_from,
    per_image,
)

INSTALL = "pip install 'robustbench_sparse[torchattacks]'"
LIBRARY_NORMS = {"linf": "Linf", "l2": "L2"}

_LINF, _L2, _BOTH = ("linf",), ("l2",), ("linf", "l2")
# The norms in which an attack works.
NORMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("BIM", "DIFGSM", "EOTPGD", "FFGSM", "FGSM", "Jitter", "MIFGSM", "NIFGSM", "PGD"), _LINF),
    **dict.fromkeys(("PGDRS", "PIFGSM", "PIFGSMPP", "RFGSM", "SINIFGSM", "SPSA", "TIFGSM", "TPGD"), _LINF),
    **dict.fromkeys(("UPGD", "VMIFGSM", "VNIFGSM"), _LINF),
    **dict.fromkeys(("CW", "DeepFool", "PGDL2", "PGDRSL2"), _L2),
    **dict.fromkeys(("APGD", "APGDT", "AutoAttack", "FAB", "Square"), _BOTH),
}
REFUSED = {
    **dict.fromkeys(("JSMA", "OnePixel", "Pixle", "SparseFool"), "it bounds the number of pixels (l0)"),
    "EADEN": "it minimises a mixture of l1 and l2",
    "EADL1": "it minimises l1",
    "GN": "it adds noise of a size that no threat bounds",
    "LGV": "it trains networks of its own",
    "MultiAttack": "it takes other attacks, which no setting can give",
    "VANILA": "it does nothing",
}
MINIMUM_NORM = ("CW", "DeepFool")  # these know no radius
BLACK_BOX = ("SPSA", "Square")
# In their targeted mode these need the true label as well; the others take the class to reach in its place, and
# SPSA and PIFGSMPP only there.
NEED_TRUE_LABEL = ("Jitter", "UPGD")
# FAB in its targeted mode looks the classes up by the numbers of other images as soon as one image is left out.
UNTARGETED = ("FAB",)

# Arguments of the constructors that no setting gives, and where they come from.
GIVEN = {
    "eps": "the threat gives it",
    "max_epsilon": "the threat gives it: eps",
    "norm": "the threat gives it",
    "seed": "the images' random streams give it",
    "verbose": "nothing is printed",
}
# Arguments whose default is a whole number, or whose text only fails once the attack runs.
NUMBERS = ("c", "kappa", "nsig", "scale")
STEP_SIZES = ("alpha", "delta", "lr")
CHOICES = {
    ("APGD", "loss"): ("ce", "dlr"),
    ("AutoAttack", "version"): ("standard", "plus", "rand"),
    ("PGDRS", "noise_type"): ("guassian", "uniform"),  # the library's spelling
    ("PGDRSL2", "noise_type"): ("guassian", "uniform"),
    ("Square", "loss"): ("margin", "ce"),
    ("TIFGSM", "kernel_name"): ("gaussian", "linear", "uniform"),
    ("UPGD", "loss"): ("ce", "dlr", "margin"),
}


@dataclass(frozen=True, kw_only=True)
class FromTorchattacks(Attack):
    """An attack of the library torchattacks, by the name of its class there.

    The library draws for a whole batch at once, and some of its attacks stop a batch as a whole: candidates depend on
    which images share a batch. It averages over no draws of a random network, except where an attack says so itself
    (EOTPGD, or ``eot_iter``). What it raises is raised here, too. Its AutoAttack takes 10 steps where that of the paper
    takes 100, and is weaker than its name says.

    Args:
        target: see :class:`attacks.base.Attack`; only where the library's attack can aim at a class, and ``given``
            only where it needs no true label beside it.
        reference: see :class:`attacks.base.Attack`.
        attack: name of the class, such as ``PGD``.
        settings: arguments of its constructor, but for the radius, the norm, the seed and what is printed; those left
            out are filled in with the library's defaults. ``n_classes`` is lowered to the network's classes.
        library: version of torchattacks; the installed one where empty, and no other otherwise.

    Raises:
        ImportError: torchattacks is not installed.
        ValueError: an attack or a setting that does not exist or does not fit, named at the head of the message.
    """

    batch_dependent: ClassVar[bool] = True
    attack: str
    settings: dict[str, Any] = field(default_factory=dict)
    library: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        library = _library()
        check(self.library in ("", library.__version__), "library", repr(library.__version__), self.library)
        settings = _checked(self.attack, self.settings)
        object.__setattr__(self, "library", library.__version__)
        object.__setattr__(self, "settings", settings)
        object.__setattr__(self, "bounded", self.attack not in MINIMUM_NORM)
        object.__setattr__(self, "black_box", self.attack in BLACK_BOX)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that the stand-in has no parameters
            aims = "targeted" in getattr(library, self.attack)(nn.Identity(), **settings).supported_mode
        if self.target != "none":
            check(
                aims and self.attack not in UNTARGETED,
                "target",
                f"'none': torchattacks.{self.attack} aims at no class",
                self.target,
            )
            check(
                self.target != "given" or self.attack not in NEED_TRUE_LABEL,
                "target",
                f"another rule: torchattacks.{self.attack} needs the true label, too",
                self.target,
            )

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError for another norm than the attack's, or without a radius where it needs one."""
        norms = NORMS[self.attack]
        check(
            threat.norm in norms,
            "threat.norm",
            f"{' or '.join(map(repr, norms))}, in which torchattacks.{self.attack} works",
            threat.norm,
        )
        finite = self.attack in MINIMUM_NORM or math.isfinite(threat.eps)
        check(finite, "threat.eps", f"a finite radius for torchattacks.{self.attack}", threat.eps)

    @property
    def passes(self) -> int:
        """Gradient passes per image at most, as far as the settings tell; 0 for a black-box attack."""
        if self.black_box:
            return 0
        get = self.settings.get
        classes = int(get("n_classes", 2)) - 1
        if self.attack == "AutoAttack":
            runs = {"standard": 1 + 2 * classes, "plus": 15 + 2 * classes, "rand": 2 * 20}
            return 10 * runs[self.settings["version"]]
        paths = classes if self.attack == "APGDT" or get("multi_targeted", False) else 1
        names = ("steps", "num_iter_set", "n_restarts", "eot_iter", "N", "m", "noise_batch_size")
        return paths * math.prod(int(get(name, 1)) for name in names)

    @property
    def queries(self) -> int:
        """Answers of the network per image at most, beside the gradients."""
        get = self.settings.get
        if self.attack == "SPSA":
            return 2 * int(get("nb_iter", 1)) * int(get("nb_sample", 1))
        if self.attack == "AutoAttack":
            return 0 if self.settings["version"] == "rand" else 5000
        return int(get("n_queries", 0)) * int(get("n_restarts", 1))

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """The library's images, (B, C, H, W)."""
        y = y.long()
        goal, towards = self.aim(model, x, y, random)
        seed = seed_of(random)
        # One source for the whole batch: the library sends some images alone, or several copies of them.
        source = GeneratorNoise(torch.Generator().manual_seed(seed)) if is_stochastic(model) else None
        # Not where CUDA is not in use: to ask for its state would start it.
        cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        with (
            torch.random.fork_rng(cuda),
            _own_gradients(model),
            noise_from(model, source),
            torch.enable_grad(),
        ):
            torch.random.manual_seed(seed)
            network = _Network(model, x)
            attack = self._build(network, x, threat, seed)
            if not towards:
                out: Tensor = attack(x.contiguous(), y)
            elif self.attack in NEED_TRUE_LABEL:
                attack.set_mode_targeted_by_function(lambda images, labels: goal, quiet=True)
                out = attack(x.contiguous(), y)
            else:
                attack.set_mode_targeted_by_label(quiet=True)
                out = attack(x.contiguous(), goal)
        out = check_candidate(out, x).detach().to(x)
        if bool(network.broken.any()):
            with torch.no_grad(), noise_from(model, source):
                logits = model(out)
            reached = logits.argmax(1) == goal
            fooled = logits.isfinite().all(1) & (reached if towards else ~reached)
            # An image that could not be attacked is not one that withstood: whoever judges it sees no image at all.
            out = torch.where(per_image(network.broken & ~fooled, out), math.nan, out)
        return out

    def _build(self, model: nn.Module, x: Tensor, threat: Threat, seed: int) -> Any:
        """The library's attack on this network, in this threat."""
        cls = getattr(_library(), self.attack)
        takes = inspect.signature(cls).parameters
        given = {
            "eps": threat.eps,
            "max_epsilon": threat.eps,
            "norm": LIBRARY_NORMS[threat.norm],
            "seed": seed,
            "verbose": False,
        }
        settings = self.settings | {name: value for name, value in given.items() if name in takes}
        if "n_classes" in takes:
            with torch.no_grad():
                settings["n_classes"] = min(settings["n_classes"], model(x[:1]).shape[1])
        with contextlib.redirect_stdout(io.StringIO()):  # see above; the device is set below
            attack = cls(model, **settings)
        attack.set_device(x.device)
        return attack


def seed_of(random: SampleRandom) -> int:
    """The seed of a batch: one draw from every image's stream, summed."""
    return int(random.integers(2**31).sum())


class _Network(nn.Module):
    """What the library gets: a network without parts, whose modes it cannot switch.

    Gradients come back in row-major order, which the library takes for granted. Where a gradient or a logit is not
    finite it takes the sign of NaN, 0, for a step: such images are remembered.

    Args:
        model: the network.
        like: the images of the batch, (B, ...).

    Attributes:
        broken: images for which a gradient or a logit was not finite, bool (B,).
    """

    broken: Tensor

    def __init__(self, model: nn.Module, like: Tensor) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that torch does not see it as a part
        self.broken = torch.zeros(len(like), dtype=torch.bool, device=like.device)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self._gradient)  # type: ignore[no-untyped-call]
        out: Tensor = self._model[0](x)
        self._remember(out.detach())
        return out

    def _gradient(self, grad: Tensor) -> Tensor:
        self._remember(grad)
        return grad.contiguous()

    def _remember(self, values: Tensor) -> None:
        # Nothing is read from the device here. Of a part of the batch, or of copies, it is not known which images they
        # are: all of them may be the ones.
        rows = ~values.flatten(1).isfinite().all(1)
        self.broken |= rows if len(rows) == len(self.broken) else rows.any()


@contextlib.contextmanager
def _own_gradients(model: nn.Module) -> Iterator[None]:
    """Leave every parameter's ``.grad`` as it was: some of the library's attacks call ``backward``."""
    before = [(p, p.grad) for p in model.parameters()]
    try:
        for p, _ in before:
            p.grad = None
        yield
    finally:
        for p, grad in before:
            p.grad = grad


def _library() -> Any:
    # By name, as this floor stands on torch alone.
    try:
        return importlib.import_module("torchattacks")
    except ImportError as e:
        raise ImportError(f"the package torchattacks cannot be imported ({e}): {INSTALL}") from None


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(c) for c in close)}?)" if close else ""


def _checked(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The attack's settings with every default filled in; ValueError for what does not fit."""
    known = [n for n in NORMS if hasattr(_library(), n)]
    if name in REFUSED:
        raise ValueError(f"attack: torchattacks.{name} fits no threat here: {REFUSED[name]}")
    if name not in known:
        folded = {n.lower(): n for n in known}
        close = _near(name, known) or _near(folded.get(name.lower(), name), known)
        raise ValueError(f"attack: unknown attack {name!r}{close}; there are: {', '.join(sorted(known))}")
    takes = inspect.signature(getattr(_library(), name)).parameters
    defaults = {n: p.default for n, p in takes.items() if n not in GIVEN and n != "model"}
    for key, value in settings.items():
        if key in GIVEN and key in takes:
            raise ValueError(f"{key}: not a setting: {GIVEN[key]}")
        if key not in defaults:
            raise ValueError(
                f"{key}: unknown setting of torchattacks.{name}{_near(str(key), list(defaults))}; "
                f"there are: {', '.join(defaults) or 'none'}"
            )
        _check_value(name, key, value, defaults[key])
    # As the defaults are written: 1 and 1.0 are the same number, and are to be the same in a record.
    given = {k: float(v) if _is_number(k, defaults[k]) else v for k, v in settings.items()}
    return {k: float(d) if _is_number(k, d) else d for k, d in defaults.items()} | given


def _is_number(key: str, default: Any) -> bool:
    return isinstance(default, float) or key in NUMBERS


def _check_value(name: str, key: str, value: Any, default: Any) -> None:
    """ValueError unless a value is of its default's type, and of use."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        check(isinstance(value, bool), key, "true or false", value)
    elif isinstance(default, str):
        check(isinstance(value, str), key, "a text", value)
        choices = CHOICES.get((name, key), (value,))
        check(value in choices, key, f"one of {', '.join(choices)}", value)
    elif _is_number(key, default):
        check(number and math.isfinite(value), key, "a finite number", value)
        least = "> 0" if key in STEP_SIZES else ">= 0"
        check(value > 0 or (value == 0 and key not in STEP_SIZES), key, f"a number {least}", value)
    else:
        assert isinstance(default, int), f"torchattacks.{name}: {key} has a default of an unknown type"
        check(isinstance(value, int) and number, key, "a whole number", value)
        # The library takes 0 steps for an attack, and returns the clean images.
        check(value >= 1, key, "an integer >= 1", value)
