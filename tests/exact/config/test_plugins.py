"""From a config entry to a plug-in: what fits is built, what does not is one line that names the setting."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

from attacks import ATTACKS, Attack
from attacks.base import LATER, check
from attacks.from_torchattacks import FromTorchattacks
from robustbench_sparse.config.plugins import (
    SettingError,
    build,
    describe,
    find,
    import_object,
    settings_of,
    settings_with_defaults,
)
from robustbench_sparse.foundation.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Tool:
    """Base."""

    key: ClassVar[str] = "tool"

    size: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Saw(Tool):
    """Cuts.

    More about it.
    """

    steps: int
    kind: Literal["rip", "cross"] = "rip"
    upper: float | None = None
    sharp: bool = True
    teeth: tuple[int, ...] = ()
    name_of_wood: str = "oak"

    def __post_init__(self) -> None:
        check(self.steps > 0, "steps", "a number > 0", self.steps)
        if self.kind == "cross" and not self.sharp:
            raise ValueError("a cross saw has to be sharp:\n really")


@dataclass(frozen=True, kw_only=True)
class Chainsaw(Saw):
    """Cuts fast; since when it may be electric, others are recorded as before."""

    electric: bool = field(default=False, metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class Odd(Tool):
    """Has a setting of a type that no config can give."""

    device: torch.device | None = None


TOOLS: dict[str, type[Tool]] = {"saw": Saw, "odd": Odd, "tool": Tool}


def make(**entry: Any) -> Tool:
    return build(TOOLS, entry, "tool", Tool)


def refused(**entry: Any) -> tuple[tuple[str | int, ...], str]:
    with pytest.raises(SettingError) as e:
        make(**entry)
    assert "\n" not in str(e.value)
    return e.value.path, e.value.problem


def test_settings_reach_the_plugin() -> None:
    built = make(name="saw", steps=3, kind="cross", upper=2, teeth=[1, 2], size=0.5)
    assert built == Saw(steps=3, kind="cross", upper=2.0, teeth=(1, 2), size=0.5)
    assert isinstance(built, Saw)
    assert type(built.upper) is float  # a whole number is fine where a number is expected


def test_a_setting_that_came_later_is_recorded_only_where_it_says_something() -> None:
    assert settings_of(Chainsaw(steps=1)) == settings_of(Saw(steps=1))
    assert settings_of(Chainsaw(steps=1, electric=True)) == {**settings_of(Saw(steps=1)), "electric": True}


def test_defaults() -> None:
    assert make(name="saw", steps=1) == Saw(steps=1)
    assert make(name="saw", steps=1, upper=None) == Saw(steps=1)
    assert settings_of(Saw(steps=1)) == {
        "size": 1.0,
        "steps": 1,
        "kind": "rip",
        "upper": None,
        "sharp": True,
        "teeth": (),
        "name_of_wood": "oak",
    }
    assert settings_with_defaults(Saw)["steps"] is ...
    assert settings_with_defaults(Chainsaw)["electric"] is False
    assert settings_with_defaults(Saw)["kind"] == "rip"
    assert "key" not in settings_with_defaults(Saw)
    assert describe(Saw) == "Cuts."


@pytest.mark.parametrize(
    ("entry", "path", "problem"),
    [
        ({"steps": 2.5}, ("steps",), "expected a whole number, got 2.5"),
        ({"steps": "3"}, ("steps",), "expected a whole number, got '3'"),
        ({"steps": True}, ("steps",), "expected a whole number, got True"),
        ({"steps": None}, ("steps",), "expected a whole number, got None"),
        ({"steps": 0}, ("steps",), "expected a number > 0, got 0"),
        ({"steps": 1, "size": "8/25x"}, ("size",), "expected a number, got '8/25x'"),
        ({"steps": 1, "size": False}, ("size",), "expected a number, got False"),
        ({"steps": 1, "upper": "a"}, ("upper",), "expected a number, got 'a'"),
        ({"steps": 1, "sharp": 1}, ("sharp",), "expected true or false, got 1"),
        ({"steps": 1, "sharp": "true"}, ("sharp",), "expected true or false, got 'true'"),
        ({"steps": 1, "kind": "chain"}, ("kind",), "expected 'rip' or 'cross', got 'chain'"),
        ({"steps": 1, "teeth": 3}, ("teeth",), "expected a list, got 3"),
        ({"steps": 1, "teeth": [3, "x"]}, ("teeth", 1), "expected a whole number, got 'x'"),
        ({"steps": 1, "name_of_wood": 5}, ("name_of_wood",), "expected a text, got 5"),
        ({"steps": 1, "kind": "cross", "sharp": False}, (), "a cross saw has to be sharp: really"),
    ],
)
def test_values_that_do_not_fit(entry: dict[str, Any], path: tuple[str | int, ...], problem: str) -> None:
    assert refused(name="saw", **entry) == (path, problem)


def test_unknown_settings_list_near_matches_and_all() -> None:
    path, problem = refused(name="saw", stepz=3)
    assert path == ("stepz",)
    assert problem.startswith(
        "unknown setting of tool 'saw' (did you mean 'steps'?); there are: size, steps,"
    )


def test_missing_settings() -> None:
    path, problem = refused(name="saw")
    assert path == ()
    assert "steps" in problem


def test_names() -> None:
    assert refused(name="swa") == (
        ("name",),
        "unknown tool 'swa' (did you mean 'saw'?); there are: odd, saw, tool",
    )
    assert refused(steps=3) == ((), "expected `name:` with one of odd, saw, tool")
    assert refused(name=5) == (("name",), "expected a text, got 5")


def test_a_setting_whose_type_no_config_can_give_is_refused_in_one_line() -> None:
    path, problem = refused(name="odd", device="cpu")
    assert path == ("device",)
    assert problem.startswith("its type cannot be checked")


def test_a_users_own_class_needs_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_tools.py").write_text(
        f"from dataclasses import dataclass\nfrom {__name__} import Tool\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Drill(Tool):\n    speed: float = 2.0\n"
        "class Stone: pass\n"
    )
    monkeypatch.chdir(tmp_path)
    built = make(name="my_own_tools:Drill", speed=3)
    assert settings_of(built) == {"size": 1.0, "speed": 3.0}
    assert refused(name="my_own_tools:Stone") == (("name",), f"expected a subclass of {__name__}.Tool")
    path, problem = refused(name="my_own_tools:Dril")
    assert path == ("name",)
    assert problem == "my_own_tools:Dril: my_own_tools has no 'Dril' (did you mean 'Drill'?)"
    assert refused(name="my_own_tools:Drill", sped=1)[0] == ("sped",)


@pytest.mark.parametrize("reference", ["no_such_module_here:x", ":x", "math:", "math:no_such_name"])
def test_imports_that_fail_name_what_was_asked_for(reference: str) -> None:
    with pytest.raises(UserError, match=f"^{reference}: "):
        import_object(reference)


def test_imports_that_work() -> None:
    assert import_object("math:inf") == math.inf
    assert find(TOOLS, "saw", "tool", Tool) is Saw


def test_a_module_that_raises_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_broken_tools.py").write_text("raise RuntimeError('first\\nsecond')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"^my_broken_tools:X: importing my_broken_tools failed: first second$"
    ):
        import_object("my_broken_tools:X")


def test_an_attack_of_torchattacks_takes_the_entrys_keys_as_its_own_settings() -> None:
    pytest.importorskip("torchattacks")
    base: Any = Attack
    entry = {"name": "torchattacks:PGD", "steps": 3, "target": "next"}
    assert find(ATTACKS, "torchattacks:PGD", "attack", base) is FromTorchattacks
    built = build(ATTACKS, entry, "attack", base)
    assert built == FromTorchattacks(attack="PGD", target="next", settings={"steps": 3})
    for changes, path in [({"stepz": 1}, ("stepz",)), ({"name": "torchattacks:PDG"}, ("name",))]:
        with pytest.raises(SettingError, match="did you mean") as e:
            build(ATTACKS, entry | changes, "attack", base)
        assert e.value.path == path


def test_the_prefix_of_torchattacks_means_attacks_only() -> None:
    pytest.importorskip("torchattacks")
    assert refused(name="torchattacks:PGD") == (("name",), f"expected a subclass of {__name__}.Tool")


def test_a_program_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_program").mkdir()
    (tmp_path / "a_program/__init__.py").write_text("")
    (tmp_path / "a_program/__main__.py").write_text("open('ran', 'w')\nclass X: pass\n")
    with pytest.raises(UserError, match="is a program, and importing it would run it"):
        import_object("a_program.__main__:X")
    assert not (tmp_path / "ran").exists()
