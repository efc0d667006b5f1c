"""Where the repository is, and which of its files are sources."""

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("kernels", "engine", "server")
FOLDERS = (*FLOORS, "tests", "benchmarks", "configs", "docker", "docs", ".ci", ".src")
GENERATED = {"__pycache__", "secrets"}


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below `folder` that people write; links are not followed."""
    for path in sorted(folder.iterdir()):
        if path.name in GENERATED or path.name.endswith(".egg-info") or path.is_symlink():
            continue
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def repository_files() -> list[Path]:
    """Every file that belongs to the repository."""
    top = [path for path in sorted(ROOT.iterdir()) if path.is_file()]
    return top + [file for folder in FOLDERS for file in files_below(ROOT / folder)]


@pytest.fixture(scope="session")
def floor_modules() -> dict[str, Path]:
    """Module name → file, for the three floors."""
    modules = {}
    for floor in FLOORS:
        for file in files_below(ROOT / floor):
            if file.suffix == ".py":
                parts = file.relative_to(ROOT).with_suffix("").parts
                modules[".".join(("headway", *parts)).removesuffix(".__init__")] = file
    return modules
