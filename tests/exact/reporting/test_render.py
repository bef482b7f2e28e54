"""One renderer of tables: what stands in a cell is seen whole, in its place, and as text."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from robustbench_sparse.foundation.texts import printable
from robustbench_sparse.reporting.render import Column, from_rows, lines, to_latex, to_markdown, to_text

HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "[red]a[/red]",
    "[link=javascript:x]b[/link]",
    ":bug:",
    "a | b \\| c",
    "`c` <script>d</script> &amp; [e](f)",
    "two\r\nlines\tand\u2028more",
    "\u202egnp.exe\x9b31m",
    "\u200d*",
    "# no heading",
]
UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


def board(count: int = 9) -> list[Column]:
    """Two runs with so many rates; number, interval and published value below each other."""
    runs = Column("run", [("natural",), ("pgd_at+rvsm",)], number=False)
    cells = [
        [(f"{10 + i}.{j}", f"{i}.{j}-{20 + i}.{j}", f"(3{i}.{j})") for j in (1, 2)] for i in range(count)
    ]
    return [runs, *(Column(f"attack{i}", pair) for i, pair in enumerate(cells))]


def plain(columns: list[Column], width: int = 10**6, front: int = 1) -> list[str]:
    return [line.plain for line in lines(columns, width, front)]


def printed(columns: list[Column], color: str | None = None) -> str:
    out = io.StringIO()
    console = Console(file=out, width=40, force_terminal=True, color_system=color)
    for line in lines(columns, 40):
        console.print(line, soft_wrap=True)
    return out.getvalue()


def parsed(markdown: str) -> tuple[list[list[str]], list[str]]:
    """The cells that a Markdown reader shows, row by row, and how it sets the columns; fails on any markup."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    assert {token.type.partition("_")[0] for token in tokens} <= {
        *("table", "thead", "tbody", "tr", "th", "td", "inline"),
    }
    rows: list[list[str]] = []
    sides = [str(token.attrGet("style") or "") for token in tokens if token.type == "th_open"]
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            assert {child.type for child in token.children or ()} <= {"text", "text_special"}
            rows[-1].append("".join(child.content for child in token.children or ()))
    return rows, sides


# The terminal -------------------------------------------------------------------------------------------


def test_texts_stand_to_the_left_and_numbers_to_the_right() -> None:
    rows = [["a", "1.5", "odd"], ["longer", "-120.25", ""]]
    columns = from_rows(["run", "gap", "why"], rows, texts=["run", "why"])
    assert to_text(columns).split("\n") == [
        "run         gap  why",
        "--------------------",
        "a           1.5  odd",
        "longer  -120.25",
    ]
    assert to_text(columns, rule=False).split("\n") == [
        "run         gap  why",
        "a           1.5  odd",
        "longer  -120.25",
    ]


def test_the_words_of_titles_stand_below_each_other_and_end_above_the_cells() -> None:
    columns = from_rows(["of", "zero %", "dense MACs of all"], [["x", "1.0", "2"]], texts=["of"])
    assert to_text(columns).split("\n") == [
        "          dense",
        "           MACs",
        "    zero     of",
        "of     %    all",
        "---------------",
        "x    1.0      2",
    ]


def test_wide_letters_take_two_places() -> None:
    text = to_text(from_rows(["run", "n"], [["中文", "1"], ["abcd", "2"]], texts=["run"]))
    assert text.split("\n")[2:] == ["中文  1", "abcd  2"]


def test_the_lines_of_a_cell_stand_below_each_other() -> None:
    columns = [
        Column("run", [("a",), ("b",)], number=False),
        Column("clean", [("90.0", "88.0-92.0", "(76.1)"), ("8.0", "", "")]),
        Column("cw", [("", "", "(1.0)"), ("7.0", "6.0-9.0")]),
    ]
    assert to_text(columns).split("\n") == [
        "run      clean       cw",
        "-----------------------",
        "a         90.0        -",
        "     88.0-92.0",
        "        (76.1)    (1.0)",
        "b          8.0      7.0",
        "                6.0-9.0",
    ]


def test_titles_are_bold_and_what_stands_below_a_number_is_dim() -> None:
    shown = printed([Column("run", [("a", "below")], number=False)], color="standard").splitlines()
    assert shown == ["\x1b[1mrun\x1b[0m", "\x1b[2m-----\x1b[0m", "a", "\x1b[2mbelow\x1b[0m"]


@pytest.mark.parametrize(
    ("width", "fit"), [(1, 1), (20, 1), (30, 1), (31, 2), (40, 2), (41, 3), (100, 8), (101, 9)]
)
def test_what_does_not_fit_goes_to_further_blocks(width: int, fit: int) -> None:
    """The runs take 11 places, every rate 8 and 2 before it; a single rate stands wherever it does not fit."""
    columns = board()
    wide, narrow = "\n".join(plain(columns)), "\n".join(plain(columns, width))
    numbers = re.compile(r"[\d.()-]*\d[\d.()-]*")
    assert sorted(numbers.findall(narrow)) == sorted(numbers.findall(wide))
    blocks = [block.split("\n") for block in narrow.split("\n\n")]
    heads = [f"attack{i}" for i in range(9)]
    parts = [heads[i : i + fit] for i in range(0, 9, fit)]
    assert [block[0].split() for block in blocks] == [["run", *part] for part in parts]
    for block, part in zip(blocks, parts, strict=True):
        assert [line.split()[0] for line in block[2::3]] == ["natural", "pgd_at+rvsm"]
        assert {len(line) for line in block} == {11 + 10 * len(part)}


def test_blocks_begin_with_as_many_columns_as_asked_for() -> None:
    columns = board(4)
    columns.insert(1, Column("seed", [("0",), ("1",)]))
    heads = [line.split() for line in plain(columns, 40, front=2) if line.startswith("run")]
    assert heads == [["run", "seed", "attack0", "attack1"], ["run", "seed", "attack2", "attack3"]]


def test_nothing_is_cut_where_the_terminal_is_narrower_than_a_cell() -> None:
    name, number = "a run of many words and " * 9 + "x" * 200, "1" * 60 + ".25"
    shown = printed([Column("run", [(name, name)], number=False), Column("n", [(number,)])])
    assert shown.count(name) == 2
    assert re.search(rf"{name} +{number}\n", shown)
    assert all(name in line or name not in shown for line in shown.splitlines()[2:])


@pytest.mark.parametrize("number", [True, False])
def test_nothing_steers_a_terminal_or_passes_for_markup(number: bool) -> None:
    for text in HOSTILE:
        shown = printed([Column(f"t{text}", [(text, text), ("1",)], number)])
        assert UNSEEN.search(shown) is None
        title, cell = printable(f"t{text}").split(" "), printable(text)
        assert [line.strip() for line in shown.splitlines() if line.strip("-")] == [*title, cell, cell, "1"]


def test_a_console_that_knows_no_width_cuts_nothing() -> None:
    name = "a long name " * 20
    code = (
        "from robustbench_sparse.reporting.render import from_rows, to_text\n"
        f"print(to_text(from_rows(['run'], [[{name!r}]], ['run'])))"
    )
    environment = {**os.environ, "TERM": "dumb", "FORCE_COLOR": "1", "COLUMNS": "20"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == name.rstrip(), done.stderr


def test_tables_without_rows_and_without_columns() -> None:
    assert to_text(from_rows(["run", "n"], [], texts=["run"])) == "run  n\n------"
    assert parsed(to_markdown(from_rows(["run", "n"], [], texts=["run"])))[0] == [["run", "n"]]
    assert to_text([]) == ""
    assert to_latex([]).startswith("\\begin{tabular}{}\n")


# Markdown -----------------------------------------------------------------------------------------------


def test_markdown_says_which_side_a_column_stands_on() -> None:
    text = to_markdown(from_rows(["run", "weight zeros"], [["a", "1.5"], ["longer", ""]], texts=["run"]))
    assert text.split("\n") == [
        "| run | weight zeros |",
        "| --- | ---: |",
        "| a | 1.5 |",
        "| longer |  |",
    ]
    assert parsed(text)[1] == ["", "text-align:right"]


@pytest.mark.parametrize("number", [True, False])
def test_markdown_is_read_back_as_the_same_cells(number: bool) -> None:
    columns = [Column(f"t{text}", [(text,), (f"b{text}",)], number) for text in HOSTILE]
    rows, _ = parsed(to_markdown(columns))
    # A cell has no blanks at its ends; the letter that takes no place is seen all the same.
    assert rows == [[printable(f"{front}{text}") for text in HOSTILE] for front in ("t", "", "b")]


def test_a_cell_in_markdown_is_one_line_however_long() -> None:
    long = "word " * 5000 + "end"
    rows, _ = parsed(to_markdown([Column("run", [(long, "", "more")], number=False), Column("n", [("1",)])]))
    assert rows == [["run", "n"], [f"{long} more", "1"]]


def test_brackets_of_intervals_are_no_links() -> None:
    cells = [("9.0", "[8.0, 9.5]", "(published 9.1)")]
    assert "| 9.0 [8.0, 9.5] (published 9.1) |" in to_markdown([Column("clean", cells)])
    for cell in ("[8.0, 9.5](x)", "[a](x)", "[8.0, 9.5]"):
        for number in (True, False):
            text = to_markdown([Column("clean", [(cell,)], number)])
            assert parsed(text)[0][1] == [cell]
            assert ("\\[" not in text) == (number and cell.endswith("]"))


def test_a_row_does_not_change_with_the_others() -> None:
    short = to_markdown(from_rows(["run", "n"], [["a", "1"]], texts=["run"]))
    long = to_markdown(from_rows(["run", "n"], [["a", "1"], ["a" * 50, "100000"]], texts=["run"]))
    assert long.startswith(f"{short}\n")


# LaTeX --------------------------------------------------------------------------------------------------


def test_latex_is_a_tabular_for_booktabs() -> None:
    columns = [
        Column("run_1", [("a & b",), ("[c] \\input{d}\n",), ("50 % $x$ #~^",)], number=False),
        Column("clean", [("90.0", "[88.0, 92.0]"), ("8.0", "± 1.0"), ("",)]),
    ]
    assert to_latex(columns).split("\n") == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"run\_1 & clean \\",
        r"\midrule",
        r"a \& b & 90.0 [88.0, 92.0] \\",
        r"{[}c] \textbackslash{}input\{d\}  & 8.0 $\pm$ 1.0 \\",
        r"50 \% \$x\$ \#\textasciitilde{}\textasciicircum{} &  \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
