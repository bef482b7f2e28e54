"""What a skeleton is, and how it is written."""

from __future__ import annotations

import keyword
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import check_free, write_text

LONGEST = 40  # characters of a name
OWN = ("attacks", "defenses", "robustbench_sparse", "tests", "torch", "numpy", "pandas")


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """The texts of a plug-in's file, of its test, and of what a config says; ``$name`` and ``$Name`` stand for its own.

    Attributes:
        code: the file ``<name>.py``.
        test: the file ``test_<name>.py``.
        config: lines of a benchmark file that use it.
    """

    code: str
    test: str
    config: str

    def texts(self, name: str) -> tuple[str, str, str]:
        """Code, test and config of a plug-in of this name; UserError for one that no module should have."""
        if not (name.isidentifier() and name.islower() and name.isascii()) or len(name) > LONGEST:
            raise UserError(
                f"NAME: expected small letters, digits and _, at most {LONGEST}, as in my_attack, got {name!r}"
            )
        if keyword.iskeyword(name) or name in sys.stdlib_module_names or name in OWN:
            raise UserError(f"NAME: a module {name} is there already: expected another name")
        words = {"name": name, "Name": "".join(part.capitalize() for part in name.split("_"))}
        code, test, config = (Template(t).substitute(words) for t in (self.code, self.test, self.config))
        return code, test, config

    def write(self, name: str, into: Path, *, force: bool = False) -> tuple[list[Path], str]:
        """Write file and test into a folder; the files, and the lines of a config.

        Raises:
            UserError: a name that cannot be, or files that are there.
        """
        code, test, config = self.texts(name)
        files = [into / f"{name}.py", into / f"test_{name}.py"]
        check_free(files, force)
        for path, text in zip(files, (code, test), strict=True):
            write_text(path, text)
        return files, config
