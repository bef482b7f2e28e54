"""Whose code computes a number: the source of foreign classes, and what a network computes, as hashes.

Own classes are named by the package's version. Of a foreign one the source counts: of the modules that define it and
its bases, and of whatever those import from the same place. Data files that such code reads are not seen.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import inspect
import marshal
import secrets
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from importlib import util
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks.base import SampleRandom, noise_from
from robustbench_sparse import __version__
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import sha256, tensors_hash

OWN = ("attacks", "defenses", "robustbench_sparse")
# Bases that say nothing about a class: their versions are recorded with the environment.
_LIBRARIES = (
    "torch",
    "torchvision",
    "torchattacks",
    "timm",
    "transformers",
    "numpy",
    "abc",
    "builtins",
    "typing",
    "collections",
    "enum",
)
PROBES, LARGE = 6, 4096  # random images that a network is asked; a third of them where they have more values
DIGITS = 6  # of the largest logit, in float64: far above its rounding, far below what changes a verdict


def code_of(objects: Iterable[object]) -> dict[str, str]:
    """What names the code behind plug-ins: ``version``, and ``module:Class`` -> hash of its source, if foreign.

    Args:
        objects: instances or classes.
    """
    classes = {o if isinstance(o, type) else type(o) for o in objects}
    found = {f"{c.__module__}:{c.__qualname__}": source_of(c) for c in classes if not is_own(c)}
    return {"version": __version__, **dict(sorted(found.items()))}


def is_own(cls: type) -> bool:
    """Whether a class is part of this package."""
    return _top(cls.__module__) in OWN


def source_of(cls: type) -> str:
    """First 16 digits of the hash of a foreign class's source; see the module."""
    digest = hashlib.sha256()
    bases = [c for c in cls.__mro__ if _top(c.__module__) not in (*OWN, *_LIBRARIES)]
    for module in _with_imports(dict.fromkeys(c.__module__ for c in bases)):
        path = _file(module)
        digest.update(f"\n{module}\n".encode())
        digest.update(b"" if path is None else sha256(path).encode())
    for base in bases:
        # Defined at a prompt or by exec there is no file; in a notebook it is that of the program around it.
        if _file(base.__module__) is None or base.__module__ == "__main__":
            digest.update(b"".join(_code(base)))
    return digest.hexdigest()[:16]


def function_source(function: Callable[..., object]) -> str:
    """A hash for each module of a foreign function and of what these import from the same place, one after another."""
    modules = _with_imports([function.__module__])
    return " ".join(sha256(p) if (p := _file(m)) else m for m in modules if _top(m) not in OWN)


def network_identity(model: nn.Module, channels: int, size: int, also: Iterable[object] = ()) -> str:
    """A hash of all that a network is: tensors, the source of its classes, and its logits on fixed images.

    Args:
        model: in eval mode, on the CPU; it is copied, and the copy is asked.
        channels, size: of its images.
        also: further classes or functions whose source counts, such as the factory.

    Raises:
        UserError: the network fails on such images.
    """
    digest = hashlib.sha256(tensors_hash(model.state_dict()).encode())
    classes = {type(m) for m in model.modules()} | {o for o in also if isinstance(o, type)}
    code = code_of(c for c in classes if _top(c.__module__) not in _LIBRARIES)
    for function in (o for o in also if isinstance(o, types.FunctionType)):
        code[f"{function.__module__}:{function.__qualname__}"] = function_source(function)
    digest.update(repr(sorted(code.items())).encode())
    digest.update(_logits(model, channels, size))
    return digest.hexdigest()


def _logits(model: nn.Module, channels: int, size: int) -> bytes:
    """The logits on the probe images, rounded; something new every time for a network that cannot repeat them."""
    count = PROBES if channels * size**2 <= LARGE else PROBES // 3
    x = torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, torch.full_like(x[:1], 0.5)])
    for dtype in (torch.float64, torch.float32):
        try:
            asked = _copied(model, dtype)
            first, second = (_ask(asked, x.to(dtype)) for _ in range(2))
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # the network is anybody's; one that insists on float32 gets it
            if dtype == torch.float32:
                raise UserError(
                    f"the network does not take images of shape {tuple(x.shape[1:])}: "
                    f"{type(e).__name__}: {one_line(e)[:160]}"
                ) from None
            continue
        if not torch.equal(first.nan_to_num(), second.nan_to_num()):
            return secrets.token_bytes(16)  # never the same network twice: nothing stored is its own
        scale = float(first.abs().nan_to_num(0, 0, 0).max()) or 1.0
        rounded = first if dtype == torch.float32 else (first / scale).round(decimals=DIGITS) + 0.0
        return f"{scale:.{DIGITS - 1}e}".encode() + rounded.contiguous().numpy().tobytes()
    raise AssertionError("float32 returns or raises")


def _copied(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in a precision; the network itself where it cannot be copied, and then in float32 only."""
    try:
        twin = copy.deepcopy(model)
    except Exception as e:  # what a foreign network holds may refuse to be copied in any way
        if dtype == torch.float32:
            return model
        raise ValueError(f"it cannot be copied: {one_line(e)[:100]}") from None
    return twin.to(dtype)


@torch.no_grad()
def _ask(model: nn.Module, x: Tensor) -> Tensor:
    """Logits with the same noise every time; a network in which noise is drawn otherwise gets torch's own seeded."""
    with (
        torch.random.fork_rng(devices=[]),
        noise_from(model, SampleRandom.for_images(0, "identity", range(len(x)))),
    ):
        torch.manual_seed(0)
        out: Tensor = model(x.clone())
    return out.detach().cpu().clone()


def _top(module: str) -> str:
    return module.partition(".")[0]


def _file(module: str) -> Path | None:
    """The source file of a module that is loaded; None for one without."""
    origin = getattr(sys.modules.get(module), "__file__", None)
    return Path(origin) if origin and origin.endswith(".py") and Path(origin).is_file() else None


def _with_imports(modules: Iterable[str]) -> list[str]:
    """Modules, and what they import from their own place: not from the library, nor from what is installed."""
    seen: dict[str, None] = {}
    todo = list(modules)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen[name] = None
        path = _file(name)
        if path is not None:
            todo += [m for m in _imported(name, path) if _is_beside(m, path)]
    return sorted(seen)


def _is_beside(module: str, importer: Path) -> bool:
    path = _file(module)
    if path is None or _top(module) in (*OWN, *_LIBRARIES):
        return False
    installed = "site-packages" in path.parts or "dist-packages" in path.parts or _is_standard(module)
    return not installed or path.parent == importer.parent


def _is_standard(module: str) -> bool:
    return _top(module) in sys.stdlib_module_names


def _imported(name: str, path: Path) -> Iterator[str]:
    """Names of the modules that a source file imports and that are loaded."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # changed on the disk since it was imported
        return
    package = getattr(sys.modules.get(name), "__package__", None) or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level + (node.module or "")
            try:
                base = util.resolve_name(dots, package) if node.level else dots
            except ImportError:
                continue
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _code(cls: type) -> Iterator[bytes]:
    """The code of a class's functions, where there is no source."""
    for name, value in sorted(vars(cls).items()):
        function = inspect.unwrap(getattr(value, "__func__", value)) if callable(value) else None
        code = getattr(function, "__code__", None)
        if isinstance(code, types.CodeType):
            yield name.encode() + marshal.dumps(code.replace(co_filename="", co_firstlineno=1))
