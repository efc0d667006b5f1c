"""The floors are `headway.*`, and their folders shadow nobody's package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FLOORS = ("kernels", "engine", "server")


def python(code: str, cwd: Path) -> str:
    """What `python -c code` prints when it is started in `cwd`."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_hugging_face_kernels_still_imports_from_the_root(root: Path) -> None:
    file = python("import kernels; print(kernels.__file__)", cwd=root)
    assert "site-packages" in Path(file).parts


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_is_no_package_of_its_own(root: Path, floor: str) -> None:
    """An `__init__.py` there would shadow the real `kernels` for every process started in the root."""
    assert not (root / floor / "__init__.py").exists()


@pytest.mark.parametrize("floor", FLOORS)
def test_the_links_are_relative(root: Path, floor: str) -> None:
    link = root / ".src" / "headway" / floor
    assert os.readlink(link) == os.path.join("..", "..", floor)
    assert link.resolve() == root / floor


def test_headway_imports_from_any_folder(root: Path, tmp_path: Path) -> None:
    code = "import headway.engine.errors as e, headway; print(headway.__file__); print(e.__file__)"
    for file in python(code, cwd=tmp_path).splitlines():
        assert root in Path(file).resolve().parents
