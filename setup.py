"""Packs into the wheel what a checkout has beside the package: guest images and testcases."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

#: What lies beside the package in a checkout, and in harness/tree when it is installed.
TREE = ("conftest.py", "pyproject.toml", "guest-images", "testcases")
LEFT_OUT = {"__pycache__", "build"}


class WithTree(build_py):
    """Copies the tree as well, unless the package stays in its checkout."""

    def run(self) -> None:
        """Copy the modules, then the tree."""
        if self.editable_mode:
            super().run()
            return
        shutil.rmtree(self.build_lib, ignore_errors=True)  # what an older build left there
        super().run()
        target = Path(self.build_lib, "harness", "tree")
        for name in TREE:
            files = [Path(name)] if Path(name).is_file() else sorted(Path(name).rglob("*"))
            for file in files:
                if file.is_file() and not LEFT_OUT.intersection(file.parts):
                    (target / file).parent.mkdir(parents=True, exist_ok=True)
                    self.copy_file(str(file), str(target / file))


setup(cmdclass={"build_py": WithTree})
