"""From a config entry to a plug-in: look the name up, check every setting, build the frozen dataclass."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import math
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from attacks.base import LATER
from defenses import regularisers
from robustbench_sparse.config.moved import new_path
from robustbench_sparse.foundation.errors import UserError, near, one_line, shown
from robustbench_sparse.models.base import ModelSpec
from robustbench_sparse.models.factory import spec_of

T = TypeVar("T")

# Of a setting: whole numbers, numbers, characters of a text, items of a list.
MOST_COUNT, MOST_SIZE, MOST_TEXT, MOST_ITEMS = 100_000_000, 1e32, 1000, 10_000

TORCHATTACKS = "torchattacks:"  # before the name of an attack of that library


class SettingError(UserError):
    """A setting that does not fit: its key path in the entry, and the rest of the line."""

    def __init__(self, path: tuple[str | int, ...], problem: str) -> None:
        super().__init__(f"{'.'.join(map(str, path))}: {problem}" if path else problem)
        self.path, self.problem = path, problem


# Modules that the user has named himself, in a config, a factory or --trust-plugins: stored files may name them again.
_TRUSTED: set[str] = set()
_FROM_FILE: ContextVar[bool] = ContextVar("from_file", default=False)
# The folder of the config that is being read: its plug-ins are looked for there first.
_BESIDE: ContextVar[Path | None] = ContextVar("beside", default=None)
_PLACES: dict[
    str, None
] = {}  # folders that plug-ins were found in, for processes that have to find them again


def trust(modules: Iterable[str]) -> None:
    """Let stored files name code of these modules (``package.module``), for the rest of the process."""
    _TRUSTED.update(modules)


def trusted() -> list[str]:
    """Modules that stored files may name."""
    return sorted(_TRUSTED)


@contextlib.contextmanager
def from_file() -> Iterator[None]:
    """Within this block names come out of a stored file, maybe a stranger's: only trusted modules are imported."""
    token = _FROM_FILE.set(True)
    try:
        yield
    finally:
        _FROM_FILE.reset(token)


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[None]:
    """Within this block names are those of a config in this folder: its modules come before all others."""
    token = _BESIDE.set(folder)
    try:
        yield
    finally:
        _BESIDE.reset(token)


def places() -> list[str]:
    """Folders that modules were found in beside a config; another process hands them to ``look_in``."""
    return list(_PLACES)


def look_in(folders: Iterable[str]) -> None:
    """Let modules be found in these folders, before all others, for the rest of the process."""
    for folder in folders:
        _PLACES[folder] = None
        if folder in sys.path:
            sys.path.remove(folder)
        sys.path.insert(0, folder)


def _look_beside(reference: str, module_name: str) -> None:
    """Let a module that lies beside the config be found there; UserError where another one of its name is loaded."""
    folder, top = _BESIDE.get(), module_name.partition(".")[0]
    if folder is None or not top.isidentifier():
        return
    folder = folder.absolute()
    if not ((folder / f"{top}.py").is_file() or (folder / top).is_dir()):
        return
    loaded = sys.modules.get(top)
    if loaded is not None:
        known = [getattr(loaded, "__file__", None), *getattr(loaded, "__path__", ())]
        if not any(p and Path(p).resolve().is_relative_to(folder.resolve()) for p in known):
            where = next((p for p in known if p), "this program")
            raise UserError(
                f"{reference}: a module {top} is loaded already, from {where}: rename the one in {folder}"
            )
    look_in([str(folder)])


def import_object(reference: str) -> Any:
    """Import ``package.module:name``; modules beside the config and in the working directory are found too.

    Raises:
        UserError: when the module or the name in it does not exist, the module is a program (``__main__``), another
            module of its name is loaded, or a stored file names it and nobody trusts it.
    """
    module_name, _, name = reference.partition(":")
    if module_name.split(".")[-1] == "__main__" and module_name != "__main__":
        raise UserError(
            f"{shown(reference)}: a module named __main__ is a program, and importing it would run it"
        )
    moved = new_path(reference)
    if moved is not None:
        raise UserError(f"{shown(reference)}: has moved: expected {moved}")
    if not _FROM_FILE.get():
        _TRUSTED.add(module_name)
    elif module_name not in _TRUSTED:
        raise UserError(
            f"refused: it names code from elsewhere, {shown(reference)}, and a file alone imports nothing; if you "
            f"trust that code, add --trust-plugins {module_name}"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    _look_beside(reference, module_name)
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # sys.exit, too: only an interrupt may end the command
        kind = "" if isinstance(e, Exception) else f"{type(e).__name__}: "
        raise UserError(f"{reference}: importing {module_name} failed: {kind}{one_line(e)}") from None
    if not hasattr(module, name):
        known = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f"{reference}: {module_name} has no {name!r}{near(name, known)}")
    return getattr(module, name)


def find(table: Mapping[str, type[T]], name: str, kind: str, base: type[T]) -> type[T]:
    """The class behind a key of a table of contents, or behind ``package.module:Class``.

    For ``torchattacks:NAME`` it is the one that adapts that library's attacks.
    """
    if name.startswith(TORCHATTACKS):
        from attacks.from_torchattacks import FromTorchattacks

        if issubclass(FromTorchattacks, base):
            return typing.cast("type[T]", FromTorchattacks)
    if ":" in name:
        try:
            found = import_object(name)
        except UserError as e:
            raise SettingError(("name",), str(e)) from None
        if inspect.isclass(found) and issubclass(found, base):
            return found
        if base is ModelSpec and callable(found):
            try:
                return typing.cast("type[T]", spec_of(found, name))
            except (TypeError, ValueError) as e:
                raise SettingError(("name",), one_line(e)) from None
        or_factory = ", or what makes a torch.nn.Module" if base is ModelSpec else ""
        raise SettingError(("name",), f"expected a subclass of {base.__module__}.{base.__name__}{or_factory}")
    if name not in table:
        raise SettingError(
            ("name",),
            f"unknown {kind} {shown(name)}{near(name, table)}; there are: {', '.join(sorted(table))}",
        )
    return table[name]


def build(table: Mapping[str, type[T]], entry: Mapping[str, Any], kind: str, base: type[T]) -> T:
    """Build a plug-in from ``{name: key, setting: value, ...}``.

    Raises:
        SettingError: unknown name or setting, wrong type, or a value the plug-in refuses.
    """
    if "name" not in entry:
        raise SettingError((), f"expected `name:` with one of {', '.join(sorted(table))}")
    if not isinstance(entry["name"], str):
        raise SettingError(("name",), f"expected a text, got {shown(entry['name'])}")
    cls = find(table, entry["name"], kind, base)
    if entry["name"].startswith(TORCHATTACKS):
        return typing.cast(T, _from_torchattacks(cls, entry))
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    settings: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "name":
            continue
        if key not in known:
            raise SettingError(
                (key,),
                f"unknown setting of {kind} {entry['name']!r}{near(str(key), known)}; "
                f"there are: {', '.join(known) or 'none'}",
            )
        settings[key] = check_type(known[key], value, (key,))
    try:
        return cls(**settings)
    except (TypeError, ValueError) as e:
        raise _refused(e, known) from None


_REGULARISERS: dict[str, type] = {}


def _regulariser(reference: str) -> type:
    """A regulariser's class from elsewhere, for ``defenses.make_regulariser``; ValueError where it is none."""
    try:
        found = import_object(reference)
    except UserError as e:
        raise ValueError(str(e)) from None
    fits = all(callable(getattr(found, name, None)) for name in ("value", "prox", "subgrad"))
    if not (inspect.isclass(found) and dataclasses.is_dataclass(found) and fits):
        raise ValueError(f"{reference}: expected a dataclass with value(w), prox(w, step) and subgrad(w)")
    _REGULARISERS[reference] = found
    return found


regularisers.ELSEWHERE.append(_regulariser)


def regularisers_in(settings: Any) -> list[type]:
    """Classes of the regularisers from elsewhere that settings name: their code belongs to what is trained."""
    if isinstance(settings, Mapping):
        return [cls for value in settings.values() for cls in regularisers_in(value)]
    if isinstance(settings, list | tuple):
        return [cls for value in settings for cls in regularisers_in(value)]
    known = _REGULARISERS.get(settings) if isinstance(settings, str) else None
    return [] if known is None else [known]


def _from_torchattacks(cls: Any, entry: Mapping[str, Any]) -> Any:
    """An attack of the library: the entry's keys are the settings of its own constructor."""
    ours = [key for key in ("target", "reference") if key in entry]
    settings = {k: v for k, v in entry.items() if k not in ("name", *ours)}
    hints = typing.get_type_hints(cls)
    chosen = {key: check_type(hints[key], entry[key], (key,)) for key in ours}
    name = entry["name"].removeprefix(TORCHATTACKS)
    try:
        return cls(attack=name, settings=settings, **chosen)
    except ImportError as e:
        raise SettingError(("name",), one_line(e)) from None
    except ValueError as e:
        text = one_line(e)
        if text.startswith("attack: ") and "attack" not in settings:
            raise SettingError(("name",), text.removeprefix("attack: ")) from None
        raise _refused(e, entry) from None


def _refused(error: Exception, known: Mapping[str, Any]) -> SettingError:
    """Turn a plug-in's own ``ValueError("setting: problem")`` into a SettingError with that key path."""
    text = one_line(error)
    head, colon, tail = text.partition(": ")
    return SettingError((head,), tail) if colon and head in known else SettingError((), text)


def check_type(hint: Any, value: Any, path: tuple[str | int, ...]) -> Any:
    """Check a value against a type hint without converting texts to numbers or the like; and its size."""
    try:
        checked = TypeAdapter(hint).validate_python(_tuples(value), strict=True)
        _check_sizes(checked, path)
        return checked
    except ValidationError as e:
        first = e.errors()[0]
        item = tuple(p for p in first["loc"] if isinstance(p, int))  # place in a list
        if first["type"] in ("missing", "extra_forbidden"):
            key, kind = first["loc"][-1], "is missing" if first["type"] == "missing" else "is unknown"
            raise SettingError((*path, *item), f"the key {key!r} {kind}") from None
        raise SettingError((*path, *item), f"{expectation(first)}, got {shown(first['input'])}") from None
    except PydanticUserError as e:
        raise SettingError(path, f"its type cannot be checked: {one_line(e)[:100]}") from None


def _check_sizes(value: Any, path: tuple[str | int, ...]) -> None:
    """SettingError for numbers and texts beyond any use, which would only overflow or run for ever later on."""
    if isinstance(value, tuple | list | dict):
        if len(value) > MOST_ITEMS:
            raise SettingError(path, f"expected at most {MOST_ITEMS} items, got {len(value)}")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_sizes(item, (*path, key))
    elif isinstance(value, str) and len(value) > MOST_TEXT:
        raise SettingError(path, f"expected at most {MOST_TEXT} characters, got {len(value)}")
    elif isinstance(value, int) and abs(value) > MOST_COUNT:
        raise SettingError(path, f"expected at most {MOST_COUNT}, got {shown(value)}")
    elif isinstance(value, float) and MOST_SIZE < abs(value) < math.inf:
        raise SettingError(path, f"expected a number of at most {MOST_SIZE:g}, got {shown(value)}")


def expectation(error: Any) -> str:
    """One of pydantic's errors as ``expected ...``."""
    kinds = {
        "int_type": "expected a whole number",
        "int_from_float": "expected a whole number",
        "float_type": "expected a number",
        "bool_type": "expected true or false",
        "string_type": "expected a text",
        "tuple_type": "expected a list",
        "list_type": "expected a list",
        "dict_type": "expected a mapping",
        "model_type": "expected a mapping",
        "none_required": "expected nothing (null)",
        "finite_number": "expected a finite number",
    }
    if error["type"] in kinds:
        return kinds[error["type"]]
    limits = error.get("ctx", {})
    if error["type"] == "literal_error":
        return f"expected {limits['expected']}"
    if error["type"] in ("greater_than", "greater_than_equal"):
        return (
            f"expected a number > {limits['gt']}"
            if "gt" in limits
            else f"expected a number >= {limits['ge']}"
        )
    if error["type"] == "less_than_equal":
        return f"expected a number <= {limits['le']}"
    if error["type"] == "too_short":
        return f"expected at least {limits['min_length']}"
    if error["type"] == "too_long":
        return f"expected at most {limits['max_length']}"
    if error["type"] == "string_too_long":
        return f"expected at most {limits['max_length']} characters"
    if error["type"] == "string_pattern_mismatch":
        return f"expected a text that matches {limits['pattern']}"
    return one_line(error["msg"]).replace("Input should be", "expected")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def describe(cls: type) -> str:
    """First line of a plug-in's docstring."""
    return (inspect.getdoc(cls) or "").split("\n", 1)[0]


def settings_with_defaults(cls: type) -> dict[str, Any]:
    """Setting name -> default of a plug-in class; a required setting maps to ``...``."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        if not f.init:
            continue
        if f.default is not dataclasses.MISSING:
            out[f.name] = f.default
        elif f.default_factory is not dataclasses.MISSING:
            out[f.name] = f.default_factory()
        else:
            out[f.name] = ...
    return out


def settings_of(plugin: Any) -> dict[str, Any]:
    """A built plug-in's settings with every default filled in, as plain values; of ``LATER`` ones only what differs."""
    fields = [f for f in dataclasses.fields(plugin) if f.init]
    given = {f.name: getattr(plugin, f.name) for f in fields}
    return {f.name: given[f.name] for f in fields if f.metadata != LATER or given[f.name] != f.default}
