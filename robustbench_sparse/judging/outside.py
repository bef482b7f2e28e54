"""What a network can remember outside its attributes: cells of closures, globals of its module, attributes of classes.

``copy.deepcopy`` shares functions and classes, and with them all that these hold. Found by walking from the network
through its attributes and through foreign code: that of this package and of installed libraries is not entered.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

OWN = ("attacks", "defenses", "robustbench_sparse")
_MOST = 20_000  # objects that are looked at; of a larger network the rest is taken for data
_LARGE = 1 << 28  # bytes of a tensor that is taken for a data set
_CODE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, type)
_PLAIN = (str, bytes, bool, int, float, complex, type(None), Tensor, np.ndarray, torch.dtype, torch.device)


@dataclass(frozen=True)
class Slot:
    """A place outside a network that holds something of its own.

    Attributes:
        name: where it is, for people.
        get, set: read it, put something else into it.
    """

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], None]


@dataclass(frozen=True)
class Outside:
    """What a walk from a network came by.

    Attributes:
        slots: places that hold data.
        spaces: the globals of the functions it uses.
    """

    slots: list[Slot]
    spaces: list[dict[str, Any]]


def outside(network: nn.Module) -> Outside:
    """All places outside a network that its code can write to, as far as they are found."""
    walk = _Walk()
    walk.todo.append(network)
    while walk.todo and len(walk.seen) < _MOST:
        walk.visit(walk.todo.popleft())
    return Outside(list(walk.slots.values()), list(walk.spaces.values()))


class _Walk:
    """The objects seen so far and what they came to."""

    def __init__(self) -> None:
        self.todo: deque[Any] = deque()
        self.seen: dict[int, Any] = {}  # the objects, too: a number is another's once they are gone
        self.slots: dict[tuple[int, str], Slot] = {}
        self.spaces: dict[int, dict[str, Any]] = {}

    def visit(self, o: Any) -> None:
        if id(o) in self.seen or isinstance(o, (*_PLAIN, types.ModuleType)):
            return
        self.seen[id(o)] = o
        if isinstance(o, types.MethodType):
            self.todo += [o.__self__, o.__func__]
        elif isinstance(o, types.FunctionType):
            if is_foreign(o.__module__):
                self._function(o)
        elif isinstance(o, type):
            if is_foreign(o.__module__):
                self._class(o)
        elif isinstance(o, functools.partial):
            self.todo += [o.func, *o.args, *o.keywords.values()]
        elif isinstance(o, dict):
            self.todo += list(o.values())
        elif isinstance(o, list | tuple | set | frozenset | deque):
            self.todo += list(o)
        else:
            self.todo += [t for t in type(o).__mro__ if is_foreign(t.__module__)]
            self.todo += list(getattr(o, "__dict__", {}).values())
            wrapped = getattr(o, "__wrapped__", None)  # such as functools.cache
            self.todo += [] if wrapped is None else [wrapped]

    def _function(self, f: types.FunctionType) -> None:
        name = f.__qualname__
        for label, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            self._slot(cell, label, f"{name}, {label}", "cell_contents")
        self._slot(f, "__defaults__", f"{name}, its defaults", "__defaults__")
        self._slot(f, "__kwdefaults__", f"{name}, its defaults", "__kwdefaults__")
        for label in list(vars(f)):
            self._slot(f, label, f"{name}.{label}", label)
        space = f.__globals__
        self.spaces[id(space)] = space
        used = set(_names(f.__code__))
        for label in sorted(used & set(space)):
            value = space[label]
            if isinstance(value, types.ModuleType):
                self._module(value, used)
            else:
                self._entry(space, label, f"{f.__module__}.{label}")

    def _module(self, module: types.ModuleType, used: set[str]) -> None:
        if is_foreign(module.__name__):
            for label in sorted(used & set(vars(module))):
                self._entry(vars(module), label, f"{module.__name__}.{label}")

    def _class(self, cls: type) -> None:
        for label, value in list(vars(cls).items()):
            if isinstance(value, staticmethod | classmethod):
                self.todo.append(value.__func__)
            elif isinstance(value, property):
                self.todo += [f for f in (value.fget, value.fset) if f is not None]
            elif isinstance(value, _CODE):
                self.todo.append(value)
            elif not (label.startswith("__") or hasattr(type(value), "__get__")):
                self._slot(cls, label, f"{cls.__qualname__}.{label}", label)

    def _slot(self, owner: Any, key: str, name: str, attribute: str) -> None:
        try:
            value = getattr(owner, attribute)
        except (AttributeError, ValueError):  # an empty cell
            return
        self.todo.append(value)
        if _holds_data(value):
            slot = Slot(name, lambda: getattr(owner, attribute), lambda new: setattr(owner, attribute, new))
            self.slots[id(owner), key] = slot

    def _entry(self, space: dict[str, Any], label: str, name: str) -> None:
        value = space[label]
        self.todo.append(value)
        if _holds_data(value):
            self.slots[id(space), label] = Slot(
                name, lambda: space[label], lambda new: space.__setitem__(label, new)
            )


def _holds_data(value: Any) -> bool:
    if value is None or isinstance(value, Tensor | np.ndarray):
        return value is not None and value.nbytes <= _LARGE
    return not isinstance(value, _CODE)


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that a function's code looks up, its inner functions' too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


@functools.cache
def is_foreign(module: str | None) -> bool:
    """Whether a module is neither this package's, nor Python's own, nor an installed library's."""
    if module is None:
        return True
    top = module.partition(".")[0]
    if top in OWN or top in sys.stdlib_module_names:
        return top == "__main__"
    path = getattr(sys.modules.get(module) or sys.modules.get(top), "__file__", None) or ""
    return "site-packages" not in path and "dist-packages" not in path


# What is remembered -------------------------------------------------------------------------------------


def traces(network: nn.Module, slots: list[Slot]) -> dict[str, str]:
    """A hash of everything that a network and the places outside it hold, by place."""
    found: dict[str, str] = {}
    for label, tensor in [*network.named_parameters(), *network.named_buffers()]:
        found[label] = _hash(tensor, {})
    for label, module in network.named_modules():
        for key, value in vars(module).items():
            if key not in ("_parameters", "_buffers", "_modules"):
                found[f"{label}.{key}".lstrip(".")] = _hash(value, {})
    for slot in slots:
        found[slot.name] = _hash(slot.get(), {})
    return found


def _hash(value: Any, seen: dict[int, Any]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    _feed(value, digest.update, seen, 0)
    return digest.hexdigest()


def _feed(value: Any, update: Callable[[bytes], None], seen: dict[int, Any], depth: int) -> None:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        update(repr((plain.dtype, plain.shape)).encode())
        update(
            plain.view(torch.uint8).numpy().tobytes()
            if plain.numel() and plain.ndim
            else repr(plain).encode()
        )
    elif isinstance(value, np.ndarray):
        update(repr((value.dtype, value.shape)).encode() + value.tobytes())
    elif isinstance(value, torch.Generator):
        update(value.get_state().numpy().tobytes())
    elif isinstance(value, (str, bytes, int, float, complex, type(None))):
        update(repr(value).encode())
    elif id(value) in seen or depth > 40 or isinstance(value, _CODE):
        return
    else:
        seen[id(value)] = value
        update(type(value).__name__.encode())
        for part in _parts(value):
            _feed(part, update, seen, depth + 1)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in list(value.items()):
            yield from (key, item)
    elif isinstance(value, list | tuple | deque):
        yield from list(value)
    elif isinstance(value, set | frozenset):
        yield from sorted(map(repr, value))
    else:
        yield from list(getattr(value, "__dict__", {}).values())
