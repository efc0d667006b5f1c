"""The docker files, read, and the build stage of the CPU image, carried out in a clean folder."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = ("Dockerfile", "Dockerfile.cpu")
GENERATED = shutil.ignore_patterns("__pycache__", "*.egg-info")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, its continuation lines joined."""

    keyword: str
    rest: str

    @property
    def arguments(self) -> list[str]:
        """The exec form (a JSON list) where there is one, else the words."""
        return json.loads(self.rest) if self.rest.startswith("[") else shlex.split(self.rest)


def read_stages(dockerfile: str) -> list[list[Instruction]]:
    """The stages of a Dockerfile, each beginning with its FROM."""
    lines = (DOCKER / dockerfile).read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace("\\\n", " ")
    stages: list[list[Instruction]] = []
    for line in filter(str.strip, text.splitlines()):
        instruction = Instruction(*line.split(maxsplit=1))
        if instruction.keyword == "FROM":
            stages.append([])
        stages[-1].append(instruction)
    return stages


@pytest.fixture(params=DOCKERFILES)
def stages(request: pytest.FixtureRequest) -> list[list[Instruction]]:
    """The stages of each Dockerfile in turn."""
    return read_stages(request.param)


@pytest.fixture(scope="session")
def cpu_stages() -> list[list[Instruction]]:
    """The stages of the CPU image."""
    return read_stages("Dockerfile.cpu")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root, which is the images' build context."""
    return ROOT


@pytest.fixture(scope="session")
def docker() -> Path:
    """The folder docker/."""
    return DOCKER


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    """compose.yaml, parsed."""
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Build:
    """A folder laid out like /build in the images, and the environment that its steps run in."""

    folder: Path
    environment: dict[str, str]

    def run(self, step: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of our steps; `python3` is the one that runs the tests."""
        command = [str(self.folder / "steps" / step), *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=500, check=False
        )


def lay_out(stage: list[Instruction], folder: Path) -> None:
    """Carry out the COPY instructions of a stage whose WORKDIR is `folder`."""
    for instruction in stage:
        if instruction.keyword != "COPY":
            continue
        *sources, target = instruction.arguments
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / target, symlinks=True, ignore=GENERATED)
            else:
                (folder / target).mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / source, folder / target)


@pytest.fixture(scope="session")
def build(cpu_stages: list[list[Instruction]], tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The build stage of the CPU image after its first step: the wheel is built."""
    folder = tmp_path_factory.mktemp("build")
    lay_out(cpu_stages[0], folder)
    build = Build(
        folder,
        os.environ
        | {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTHONPATH": "",
            "SOURCE": str(folder / "source"),
            "WHEELS": str(folder / "wheels"),
            "CONSTRAINTS": str(folder / "constraints.txt"),
            "VENV": str(folder / "venv"),
        },
    )
    done = build.run("build_wheel.sh", "--no-build-isolation")
    assert done.returncode == 0, done.stdout + done.stderr
    return build


@pytest.fixture(scope="session")
def installed(build: Build) -> Build:
    """The same after its second step; the dependencies come from this environment, to save minutes."""
    installed = Build(build.folder, build.environment | {"PYTHONPATH": sysconfig.get_path("purelib")})
    done = installed.run("install_wheel.sh", "--no-deps")
    assert done.returncode == 0, done.stdout + done.stderr
    return installed
