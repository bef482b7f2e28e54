"""Reading YAML the way a config means it.

PyYAML follows YAML 1.1, where ``1e-3`` and ``8/255`` are texts, ``off`` is a boolean, ``010`` is eight,
``1:30`` is ninety, ``2020-01-01`` is a date, and the second of two equal keys wins in silence. Here the first
two are numbers, only ``true`` and ``false`` are booleans, numbers are decimal, keys and all the rest are
texts, and a repeated key is an error. Every key's line is kept for error messages. A file is limited in bytes, depth,
and values, these counted with every alias written out: a small file can stand for an endless one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import yaml

from robustbench_sparse.foundation.errors import UserError, one_line, shown

KeyPath = tuple[str | int, ...]

MAX_BYTES, MAX_DEPTH, MAX_VALUES = 1 << 20, 40, 100_000
MAX_KEY, MAX_NUMBER = 200, 100  # characters

_FLOAT = re.compile(
    r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf)$|^\.nan$"
)
_MERGE = "tag:yaml.org,2002:merge"
_RULES = {
    "tag:yaml.org,2002:null": (re.compile(r"^(?:~|null|Null|NULL|)$"), [*"~nN", ""]),
    "tag:yaml.org,2002:bool": (re.compile(r"^(?:true|True|false|False)$"), [*"tTfF"]),
    "tag:yaml.org,2002:int": (re.compile(r"^[-+]?(?:0|[1-9](?:_?\d)*)$"), [*"-+0123456789"]),
    "tag:yaml.org,2002:float": (_FLOAT, [*"-+.0123456789"]),
    "!fraction": (re.compile(r"^[-+]?\d+(?:\.\d+)?/\d+(?:\.\d+)?$"), [*"-+0123456789"]),
    _MERGE: (re.compile(r"^<<$"), ["<"]),
}
_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")


class _Loader(yaml.SafeLoader):
    """SafeLoader that knows plain values only."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    yaml_constructors = {  # noqa: RUF012
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (*(f"tag:yaml.org,2002:{name}" for name in _TAGS), None)
    }


def _fraction(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    above, below = str(loader.construct_scalar(node)).split("/")
    if float(below) == 0:
        raise yaml.constructor.ConstructorError(None, None, "division by zero", node.start_mark)
    return float(above) / float(below)


for _tag, (_rule, _first) in _RULES.items():
    _Loader.add_implicit_resolver(_tag, _rule, _first)
_Loader.add_constructor("!fraction", _fraction)


def parse(text: str, name: str) -> tuple[Any, dict[KeyPath, int]]:
    """Parse YAML text.

    Args:
        text: the document.
        name: what to call it in errors.

    Returns:
        The value and the line (from 1) of every key path in it.

    Raises:
        UserError: for a syntax error, or a limit that is passed, with the line.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise UserError(f"{name}:1: larger than {MAX_BYTES} bytes")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        _check_size(node)
        _check_keys(node, ())
        value = loader.construct_document(node)
        lines: dict[KeyPath, int] = {}
        _collect_lines(node, (), lines)  # after construction, which puts merged keys (<<) in their place
        return value, lines
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{name}{line}: not valid YAML: {one_line(e.problem or e.context)}") from None
    except yaml.reader.ReaderError as e:
        at = 1 + text.count("\n", 0, e.position)
        raise UserError(
            f"{name}:{at}: not valid YAML: the character U+{ord(text[e.position]):04X}: {one_line(e.reason)}"
        ) from None
    except RecursionError:
        raise UserError(f"{name}:1: not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError) as e:
        raise UserError(f"{name}:1: not valid YAML: {one_line(e)}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _check_size(node: yaml.Node) -> None:
    """Refuse what is nested too deeply, or is too much once every alias is written out."""
    known: dict[int, tuple[int, int]] = {}  # node -> its values, its depth

    def measure(here: yaml.Node, above: int) -> tuple[int, int]:
        if id(here) in known:
            return known[id(here)]
        if above > MAX_DEPTH:
            raise _refusal(f"nested more than {MAX_DEPTH} deep", here)
        known[id(here)] = 0, 0  # within itself: said by ``_check_keys``
        children = (
            [n for pair in here.value for n in pair] if isinstance(here, yaml.MappingNode) else here.value
        )
        below = [measure(n, above + 1) for n in children] if not isinstance(here, yaml.ScalarNode) else []
        count, depth = 1 + sum(c for c, _ in below), 1 + max((d for _, d in below), default=0)
        if count > MAX_VALUES:
            raise _refusal(f"more than {MAX_VALUES} values, aliases written out", here)
        if above + depth > MAX_DEPTH + 1:
            raise _refusal(f"nested more than {MAX_DEPTH} deep, aliases written out", here)
        known[id(here)] = count, depth
        return count, depth

    measure(node, 0)


def _refusal(problem: str, at: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, at.start_mark)


def _check_keys(node: yaml.Node, above: tuple[yaml.Node, ...]) -> None:
    """Make keys texts; refuse repeated keys, keys that are no plain value, values that are not what their tag says, and
    a value that contains itself.
    """
    if any(node is n for n in above):
        raise _refusal("a value contains itself", node)
    rule = _RULES.get(node.tag)
    if isinstance(node, yaml.ScalarNode) and rule is not None:
        if not rule[0].match(node.value):
            raise _refusal(f"expected a value of {node.tag}, got {shown(node.value)}", node)
        if len(node.value) > MAX_NUMBER:
            raise _refusal(f"a number of more than {MAX_NUMBER} characters", node)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("expected a name as key", key)
            if len(key.value) > MAX_KEY:
                raise _refusal(f"a key of more than {MAX_KEY} characters: {shown(key.value)}", key)
            if key.value in seen:
                raise _refusal(f"the key {key.value!r} is given twice", key)
            seen.add(key.value)
            if key.tag != _MERGE:
                key.tag = "tag:yaml.org,2002:str"
            _check_keys(value, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value, (*above, node))


def _collect_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, cast(str, key.value))
            lines[here] = key.start_mark.line + 1
            _collect_lines(value, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            at = (*path, i)
            lines[at] = value.start_mark.line + 1
            _collect_lines(value, at, lines)


def read(path: Path) -> tuple[Any, dict[KeyPath, int]]:
    """Read a YAML file; see ``parse``."""
    try:
        if not path.is_file():  # a pipe or a device would block, or never end
            raise UserError(f"{path}: {'no regular' if path.exists() else 'no such'} file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = 1 + data.count(b"\n", 0, e.start)
        raise UserError(f"{path}:{line}: cannot be read: {one_line(e)}") from None
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read: {one_line(e)}") from None
    return parse(text, str(path))


def scalar(text: str) -> Any:
    """The value of a ``--set key=VALUE``, by the same rules as in a file."""
    return parse(text, f"--set value {text!r}")[0]
