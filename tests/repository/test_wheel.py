"""The wheel holds the whole package, and nothing else; built from the sdist, so that both are proven."""

import configparser
import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

FLOORS = ("kernels", "engine", "server")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", ".src", *FLOORS)
GENERATED = shutil.ignore_patterns("__pycache__", "*.egg-info")


@pytest.fixture(scope="module")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what a build needs."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, symlinks=True, ignore=GENERATED)
        else:
            shutil.copy2(root / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def dist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel built from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def expected(source: Path) -> dict[str, bytes]:
    """Name in the wheel → content, for every file of the package."""
    package = source / ".src" / "headway"
    files = {file.name: file for file in package.iterdir() if file.is_file()}
    for floor in FLOORS:
        below = (source / floor).rglob("*")
        files |= {file.relative_to(source).as_posix(): file for file in below if file.is_file()}
    return {f"headway/{name}": file.read_bytes() for name, file in files.items()}


@pytest.fixture(scope="module")
def wheel(dist: Path) -> zipfile.ZipFile:
    """The wheel, open."""
    (file,) = dist.glob("*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_holds_every_file(wheel: zipfile.ZipFile, expected: dict[str, bytes]) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == set(expected)
    assert all(wheel.read(name) == content for name, content in expected.items())


def test_the_embedded_model_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    weights = wheel.getinfo("headway/engine/needle/weights/model.safetensors")
    assert weights.file_size > 1_000_000


def test_the_wheel_takes_no_other_name(wheel: zipfile.ZipFile) -> None:
    """A top-level `kernels` would overwrite Hugging Face's package."""
    assert {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name} == {"headway"}


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert (metadata["Name"], metadata["License-Expression"]) == ("headway", "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert scripts["console_scripts"]["headway"] == "headway.server.cli:main"


def test_the_sdist_holds_every_file_too(dist: Path, expected: dict[str, bytes]) -> None:
    (file,) = dist.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {member.name.split("/", 1)[-1] for member in archive.getmembers() if member.isfile()}
    assert {f".src/{name}" for name in expected} <= names
