"""What setup.cfg cannot say: a wheel also carries the benchmarks and the measured tables of a checkout.

They stay at its top, where people look for them, and are copied to ``robustbench_sparse/shipped`` as the wheel is
built.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = {"configs": "configs", "reference": "results/reference"}
ENDINGS = (".yaml", ".csv", ".md")


class BuildWithTables(build_py):
    """The package's files, and what it ships beside them."""

    def run(self) -> None:
        """Build, then copy; an editable install finds them in the checkout."""
        super().run()
        if self.editable_mode:
            return
        for name, source in SHIPPED.items():
            target = Path(self.build_lib) / "robustbench_sparse" / "shipped" / name
            shutil.rmtree(target, ignore_errors=True)  # left by an earlier build
            for path in sorted(Path(source).rglob("*")):
                if path.suffix in ENDINGS and path.is_file():
                    copy = target / path.relative_to(source)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)


setup(cmdclass={"build_py": BuildWithTables})
