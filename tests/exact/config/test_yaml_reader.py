"""YAML as a config means it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from robustbench_sparse.config.yaml_reader import parse, read, scalar
from robustbench_sparse.foundation.errors import UserError, shown


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5E4", 50000.0),
        ("+.5e3", 500.0),
        ("-1.5e+2", -150.0),
        ("5.", 5.0),
        ("0.1", 0.1),
        ("8/255", 8 / 255),
        ("-1/3", -1 / 3),
        ("0.5/255", 0.5 / 255),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("0", 0),
        ("-12", -12),
        ("55_000", 55000),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        # What YAML 1.1 takes for something else, and people do not.
        ("off", "off"),
        ("yes", "yes"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        # Quoted is text, always.
        ("'8/255'", "8/255"),
        ('"1e-3"', "1e-3"),
        ("'true'", "true"),
        # No numbers.
        ("1e", "1e"),
        ("8/", "8/"),
        ("1.2.3", "1.2.3"),
        ("resnet18", "resnet18"),
        ("my.module:Class", "my.module:Class"),
        ("[1, 2/4, a]", [1, 0.5, "a"]),
        ("{name: sgd, lr: 1e-1}", {"name": "sgd", "lr": 0.1}),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    got = scalar(text)
    assert got == value
    assert type(got) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(scalar(".nan"))


def test_keys_are_texts_whatever_they_look_like() -> None:
    value, lines = parse("runs:\n  2024: 1\n  true: 2\n  1e-3: 3\n", "f")
    assert value == {"runs": {"2024": 1, "true": 2, "1e-3": 3}}
    assert lines["runs", "1e-3"] == 4


def test_lines_of_keys_and_items() -> None:
    _, lines = parse("a:\n  b: 1\n\n  c:\n    - x\n    - {d: 2}\n", "f")
    assert lines == {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 4,
        ("a", "c", 0): 5,
        ("a", "c", 1): 6,
        ("a", "c", 1, "d"): 6,
    }


def test_anchors_and_merged_keys() -> None:
    text = "base: &b {lr: 1e-1, steps: 2}\nrun:\n  <<: *b\n  steps: 3\n"
    value, lines = parse(text, "f")
    assert value["run"] == {"lr": 0.1, "steps": 3}
    assert lines["run", "lr"] == 1
    assert lines["run", "steps"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3: not valid YAML: the key 'a' is given twice"),
        ("a: {b: 1, b: 2}\n", "f:1: not valid YAML: the key 'b' is given twice"),
        ("1: a\n'1': b\n", "f:2: not valid YAML: the key '1' is given twice"),
        ("a: 1/0\n", "f:1: not valid YAML: division by zero"),
        ("? [a, b]\n: 1\n", "f:1: not valid YAML: expected a name as key"),
        ("b: 0\na: &a [*a]\n", "f:2: not valid YAML: a value contains itself"),
        ("a: [1, 2\n", "f:2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n---\nb: 2\n", "f:2: not valid YAML: but found another document"),
        ("a: *nowhere\n", "f:1: not valid YAML: found undefined alias 'nowhere'"),
        ("a: !!int abc\n", "f:1: not valid YAML: expected a value of tag:yaml.org,2002:int, got 'abc'"),
        ("a: " + "[" * 2000, "f:1: not valid YAML: nested too deeply"),
        ("x: 1\na: " + "[" * 60 + "]" * 60, "f:2: not valid YAML: nested more than 40 deep"),
        (
            "x: 1\na: !!bool zfgsm\n",
            "f:2: not valid YAML: expected a value of tag:yaml.org,2002:bool, got 'zfgsm'",
        ),
        (
            "x: 1\n" + "k" * 500 + ": 1\n",
            f"f:2: not valid YAML: a key of more than 200 characters: {shown('k' * 500)}",
        ),
        ("x: 1\ny: " + "9" * 500, "f:2: not valid YAML: a number of more than 100 characters"),
        ("x: " + "y" * (1 << 20), "f:1: larger than 1048576 bytes"),
        ("x: 1\ny: \x01", "f:2: not valid YAML: the character U+0001: special characters are not allowed"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UserError) as e:
        parse(text, "f")
    assert str(e.value) == message


@pytest.mark.parametrize(
    "text",
    [
        "a: \x01\n",
        "a: !!set {x}\n",
        "a: !!timestamp x\n",
        "a: !!python/object/apply:os.getcwd []\n",
        "a: !!python/name:os.system\n",
        "a: !fraction one\n",
        "a:\tb: 1\n",
    ],
)
def test_nothing_but_plain_values(text: str) -> None:
    with pytest.raises(UserError, match=r"^f(:1)?: not valid YAML: [^\n]*$"):
        parse(text, "f")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("lr: 1e-3\n", encoding="utf-8")
    assert read(path) == ({"lr": 0.001}, {("lr",): 1})
    path.write_bytes(b"\xef\xbb\xbfname: caf\xc3\xa9\n")  # with a byte order mark
    assert read(path)[0] == {"name": "caf\u00e9"}
    path.write_text("", encoding="utf-8")
    assert read(path) == (None, {})
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "y.yaml")
    with pytest.raises(UserError, match="no regular file"):
        read(tmp_path)
    path.write_bytes(b"x: 1\na: \xff\xfe\n")
    with pytest.raises(UserError, match=r"x\.yaml:2: cannot be read"):
        read(path)


def laughs(levels: int, kind: str) -> str:
    """Nine aliases of the level before on every level."""
    lines = ["a0: &a0 [x, x]" if kind == "list" else "a0: &a0 {x: 1}"]
    for i in range(1, levels):
        below = ", ".join([f"*a{i - 1}"] * 9)
        lines.append(
            f"a{i}: &a{i} [{below}]" if kind == "list" else f"a{i}: &a{i} {{<<: [{below}], k{i}: 1}}"
        )
    return "\n".join(lines)


@pytest.mark.parametrize("kind", ["list", "merge"])
def test_aliases_are_counted_as_if_they_were_written_out(kind: str) -> None:
    assert len(parse(laughs(3, kind), "f")[0]) == 3
    for levels in (7, 60):
        with pytest.raises(
            UserError, match=r"f:\d+: not valid YAML: (more than 100000 values|nested more than 40)"
        ):
            parse(laughs(levels, kind), "f")
