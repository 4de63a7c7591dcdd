"""Builds a wheel that carries the app too: app.py, pages/, assets/ and their settings become swm/app_files there."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PARTS = ("app.py", "pages", "assets", ".streamlit")


class BuildWithApp(build_py):
    """Copies what the app needs beside the engine."""

    def run(self) -> None:
        """Build the packages, then add the app; an editable install finds it in the source folder."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "swm" / "app_files"
        shutil.rmtree(target, ignore_errors=True)
        for part in map(Path, PARTS):
            if part.is_dir():
                shutil.copytree(part, target / part, ignore=shutil.ignore_patterns("__pycache__", "secrets.toml"))
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(part, target / part)


setup(cmdclass={"build_py": BuildWithApp})
