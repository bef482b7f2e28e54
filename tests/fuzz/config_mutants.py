"""Configs that were changed at random: ``python -m tests.fuzz.config_mutants --count 20000 --seed 0``.

Each mutant of the project's own configs has to make a plan, or be refused in one line that names the file and a line of
it. Nothing may hang, fill the memory or be written. Exit code 1 where something else came.
"""

from __future__ import annotations

import argparse
import copy
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from robustbench_sparse.config.load import load
from tests.fuzz.common import fault, watched

CONFIGS = Path(__file__).parents[2] / "configs"
# What a line, or a part of it, becomes; and what a value does.
TEXTS = [
    "", "x", "null", "true", "-1", "0", "1e308", ".nan", ".inf", "-.inf", "2**63", "9" * 30, "9" * 400, "1/0", "0x10",
    "8/255", "[]", "{}", "[1, 2]", "{name: x}", "*a", "&a x", "!!bool x", "!!int 1.5", "!!python/object:os.system {}",
    "!!binary aGk=", "<<", "? x", "|", ">", "'", '"', "%", "@", "`", "\t", "- - - x", "x: y: z", "\u202e", "\U0001f600",
    "../../../etc/passwd", "/dev/zero", "a" * 3000, "torchattacks:PGD", "torchattacks:Nope", "no.such.module:X",
    "unittest.__main__:X", ":", "x:", ":x", "..:x", "10**30", "1000000000000", "1e-400", "010", "1:30", "2020-01-01",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 1, 8, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), 0.5, "", "x", "y" * 300,
    [], [0], [-1], [2**40], ["x"], [[[]]], {}, {"name": "x"}, {"x": 1}, "pgd", "clip", "rgsm", "sgd", "linbreg",
    "mnist", "digits",
]  # fmt: skip


def sources() -> list[str]:
    """The texts of all configs."""
    return [path.read_text() for path in sorted(CONFIGS.rglob("*.yaml"))]


def mutant(text: str, chance: random.Random) -> str:
    """A changed config: its text, or its values."""
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        text = _values(text, chance) if chance.random() < 0.5 else _lines(text, chance)
    return text


def _lines(text: str, chance: random.Random) -> str:
    lines = text.split("\n")
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    kind = chance.randrange(9)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[other])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        lines[at] = " " * chance.choice([1, 2, 3, 200]) + lines[at]
    elif kind in (4, 5):
        key = lines[at].split(":")[0] if ":" in lines[at] else "name"
        lines[at] = f"{key}: {chance.choice(TEXTS)}"
    elif kind == 6:
        place = chance.randrange(len(lines[at]) + 1)
        lines[at] = lines[at][:place] + chance.choice(TEXTS) + lines[at][place:]
    elif kind == 7:
        lines[at] = "".join(chance.choice([c, c, c, chr(chance.randrange(1, 300))]) for c in lines[at])
    else:
        lines = _laughs(chance) + lines
    return "\n".join(lines)


def _laughs(chance: random.Random) -> list[str]:
    """A level above level of aliases."""
    lines = ["l0: &l0 [x, x, x]"]
    return lines + [
        f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, chance.choice([2, 7, 12]))
    ]


def _values(text: str, chance: random.Random) -> str:
    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, KeyError):
        return text
    if not isinstance(raw, dict) or len(text) > 50_000 or "*l" in text:
        return text
    raw = copy.deepcopy(raw)
    places: list[tuple[Any, Any]] = []

    def walk(here: Any) -> None:
        pairs = (
            list(here.items())
            if isinstance(here, dict)
            else list(enumerate(here))
            if isinstance(here, list)
            else []
        )
        for key, below in pairs:
            places.append((here, key))
            walk(below)

    walk(raw)
    if not places:
        return text
    holder, key = chance.choice(places)
    kind = chance.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[chance.choice(["x", "name", "n" * 150, "steps", "eps", "=cmd", "\x1b[31m"])] = holder.pop(key)
    elif kind == 2:
        other, at = chance.choice(places)
        holder[key] = (
            copy.deepcopy(other[at]) if at in other or (isinstance(other, list) and at < len(other)) else None
        )
    else:
        holder[key] = copy.deepcopy(chance.choice(VALUES))
    try:
        return str(yaml.safe_dump(raw, sort_keys=False))
    except (yaml.YAMLError, RecursionError):
        return text


def main(count: int, seed: int) -> tuple[list[str], float]:
    """Try so many mutants; everything that went wrong, a line each, and the longest time that one took, in seconds."""
    texts, slowest = sources(), 0.0
    with tempfile.TemporaryDirectory() as scratch, watched() as found:
        path = Path(scratch) / "mutant.yaml"
        for number in range(count):
            chance = random.Random(f"{seed}/{number}")
            path.write_text(mutant(chance.choice(texts), chance), encoding="utf-8", errors="replace")
            began = time.perf_counter()
            problem = fault(lambda: load(path), rf"{re.escape(str(path))}:\d+: ")
            slowest = max(slowest, time.perf_counter() - began)
            if problem:
                found.append(f"{number}: {problem}")
            more = [p.name for p in Path(scratch).iterdir() if p != path]
            if more:
                found.append(f"{number}: wrote {more}")
    return found, slowest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    problems, longest = main(given.count, given.seed)
    print("\n".join(problems))
    print(f"{given.count} configs, {len(problems)} faults, at most {longest:.2f} s each")
    sys.exit(1 if problems else 0)
