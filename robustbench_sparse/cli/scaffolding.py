"""The command that writes the skeleton of a plug-in with its test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustbench_sparse.foundation.errors import UserError, near


def new(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="attack, defense or check.", show_default=False)
    ],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of the module, as in my_attack.", show_default=False)
    ],
    into: Annotated[Path, typer.Option(metavar="DIR", help="Where to.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:
    """Write the skeleton of an attack, a defense or a check, with a test that passes.

    NAME.py works as it stands; test_NAME.py tests what every plug-in of its kind
    has to do. Where a config lies beside NAME.py, it is found from there. See
    docs/extending.md.

    \b
    Examples:
      robustbench-sparse new attack my_attack
      robustbench-sparse new defense my_defense --into configs
      robustbench-sparse new check my_check && python -m pytest test_my_check.py
    """
    from robustbench_sparse.scaffolds import SKELETONS

    if kind not in SKELETONS:
        known = ", ".join(SKELETONS)
        raise UserError(f"KIND: expected one of {known}, got {kind!r}{near(kind, SKELETONS)}")
    files, config = SKELETONS[kind].write(name, into, force=force)
    typer.echo(f"written: {', '.join(map(str, files))}\n\nIn a config beside it:\n\n{config}")
    typer.echo(f"Test it: python -m pytest {files[1]}")
