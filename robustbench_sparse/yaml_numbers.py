"""Reading YAML the way a config means it.

PyYAML follows YAML 1.1, where ``1e-3`` and ``8/255`` are texts, ``off`` is a boolean, ``010`` is eight,
``1:30`` is ninety, ``2020-01-01`` is a date, and the second of two equal keys wins in silence. Here the first
two are numbers, only ``true`` and ``false`` are booleans, numbers are decimal, keys and all the rest are
texts, and a repeated key is an error. Every key's line is kept for error messages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import yaml

from robustbench_sparse.errors import UserError, one_line

KeyPath = tuple[str | int, ...]

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
        UserError: for a syntax error, with its line.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        _check_keys(node, ())
        value = loader.construct_document(node)
        lines: dict[KeyPath, int] = {}
        _collect_lines(node, (), lines)  # after construction, which puts merged keys (<<) in their place
        return value, lines
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{name}{line}: not valid YAML: {one_line(e.problem or e.context)}") from None
    except (yaml.YAMLError, ValueError) as e:
        raise UserError(f"{name}: not valid YAML: {one_line(e)}") from None
    except RecursionError:
        raise UserError(f"{name}: not valid YAML: nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def _check_keys(node: yaml.Node, above: tuple[yaml.Node, ...]) -> None:
    """Make keys texts; refuse repeated keys, keys that are no plain value, a value that contains itself."""

    def refuse(problem: str, at: yaml.Node) -> yaml.constructor.ConstructorError:
        return yaml.constructor.ConstructorError(None, None, problem, at.start_mark)

    if any(node is n for n in above):
        raise refuse("a value contains itself", node)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise refuse("expected a name as key", key)
            if key.value in seen:
                raise refuse(f"the key {key.value!r} is given twice", key)
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
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read: {one_line(e)}") from None
    return parse(text, str(path))


def scalar(text: str) -> Any:
    """The value of a ``--set key=VALUE``, by the same rules as in a file."""
    return parse(text, f"--set value {text!r}")[0]
