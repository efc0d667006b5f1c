"""Every RUN step of the images, executed in a clean folder."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


def run(
    script: Path, environment: dict[str, str], *arguments: str, limit: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a step with the system's programs and `environment`."""
    return subprocess.run(
        [str(script), *arguments],
        env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", **environment},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )


def test_the_installed_wheel_works_outside_the_repository(installed: Any, tmp_path: Path) -> None:
    python = Path(installed.environment["VENV"], "bin", "python")
    code = "import headway.server.cli as cli; print(cli.__file__)"
    done = subprocess.run(
        [python, "-c", code],
        env=installed.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(installed.environment["VENV"]) in Path(done.stdout.strip()).parents


def test_the_entry_point_of_the_image_takes_its_arguments(installed: Any, tmp_path: Path) -> None:
    headway = Path(installed.environment["VENV"], "bin", "headway")
    done = subprocess.run(
        [headway, "serve", "--help"],
        env=installed.environment | {"COLUMNS": "200"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(option in done.stdout for option in ("--config", "--host", "--port"))


@pytest.mark.parametrize("names", [(), ("headway-1-py3-none-any.whl", "headway-2-py3-none-any.whl")])
def test_anything_but_one_wheel_is_refused(build: Any, tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).touch()
    environment = build.environment | {"WHEELS": str(tmp_path), "VENV": str(tmp_path / "venv")}
    done = run(build.folder / "steps" / "install_wheel.sh", environment)
    assert done.returncode == 1
    assert "exactly one headway wheel" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_the_wheel_installs_with_its_pinned_dependencies(build: Any, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    environment = build.environment | {"VENV": str(venv)}
    done = run(build.folder / "steps" / "install_wheel.sh", environment, limit=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = subprocess.run(
        [venv / "bin" / "python", "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    assert listed.returncode == 0, listed.stdout


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("useradd"), reason="needs root and useradd")
def test_create_user(docker: Path, tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (etc / "group").write_text("root:x:0:\n")
    (etc / "shadow").touch()
    (etc / "gshadow").touch()
    done = run(docker / "steps" / "create_user.sh", {"ROOT": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "headway:x:10001:10001::/home/headway:/usr/sbin/nologin" in (etc / "passwd").read_text().splitlines()
    )
    assert "headway:x:10001:" in (etc / "group").read_text().splitlines()
    for own in ("models", "cache", "home/headway"):
        assert ((tmp_path / own).stat().st_uid, (tmp_path / own).stat().st_gid) == (10001, 10001)
    assert (etc / "headway").stat().st_uid == 0


PACKAGE = "Package: {name}\nVersion: 1\nArchitecture: all\nFilename: ./{name}.deb\nSize: 1\nSHA256: {sum}\n\n"


@pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt-get")
def test_install_compiler(docker: Path, tmp_path: Path) -> None:
    """The real apt-get, on a repository of our own and without touching this system."""
    lists = tmp_path / "state" / "lists"
    for folder in (lists / "partial", tmp_path / "cache" / "archives" / "partial", tmp_path / "parts"):
        folder.mkdir(parents=True)
    (tmp_path / "status").touch()
    packages = [PACKAGE.format(name=name, sum="0" * 64) for name in ("gcc", "libc6-dev", "unwanted")]
    (tmp_path / "Packages").write_text("".join(packages))
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{tmp_path} ./\n")
    (tmp_path / "apt.conf").write_text(
        f"""
        Dir::State "{tmp_path}/state"; Dir::State::status "{tmp_path}/status"; Dir::Cache "{tmp_path}/cache";
        Dir::Etc::sourcelist "{tmp_path}/sources.list"; Dir::Etc::sourceparts "{tmp_path}/parts";
        APT::Sandbox::User ""; Debug::NoLocking "true";
        """
    )
    environment = {"APT_CONFIG": str(tmp_path / "apt.conf"), "APT_LISTS": str(lists)}
    done = run(docker / "steps" / "install_compiler.sh", environment, "--simulate")
    assert done.returncode == 0, done.stdout + done.stderr
    installed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("Inst ")}
    assert installed == {"gcc", "libc6-dev"}
    assert list(lists.iterdir()) == []
