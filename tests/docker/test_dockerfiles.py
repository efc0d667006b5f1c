"""The Dockerfiles: pinned, non-root, and with steps that are scripts of ours."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from headway.server.settings import load_settings

Stages = list[list[Any]]


def of(stage: list[Any], keyword: str) -> list[Any]:
    """The instructions of a stage with this keyword."""
    return [instruction for instruction in stage if instruction.keyword == keyword]


def lint(tool: str, *arguments: str | Path) -> None:
    """Run a linter of this environment; fails with its output."""
    command = [str(Path(sys.executable).with_name(tool)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint(docker: Path) -> None:
    lint("hadolint", "--config", docker / "hadolint.yaml", docker / "Dockerfile", docker / "Dockerfile.cpu")


def test_shellcheck(docker: Path, root: Path) -> None:
    scripts = sorted(docker.glob("steps/*.sh"))
    lint("shellcheck", "--enable=all", "--exclude=SC2250", root / ".ci" / "run", *scripts)


def test_every_run_step_is_a_script_of_ours(stages: Stages, docker: Path) -> None:
    for stage in stages:
        copied = [source for copy in of(stage, "COPY") for source in copy.arguments[:-1]]
        for run in of(stage, "RUN"):
            (path,) = run.arguments
            script = docker / "steps" / Path(path).name
            assert f"docker/steps/{script.name}" in copied
            assert script.stat().st_mode & 0o111, f"{script.name} is not executable"
            assert "set -euo pipefail" in script.read_text(encoding="utf-8")


def test_no_step_is_left_over(docker: Path) -> None:
    text = "".join((docker / name).read_text(encoding="utf-8") for name in ("Dockerfile", "Dockerfile.cpu"))
    assert [step.name for step in docker.glob("steps/*") if f'{step.name}"]' not in text] == []


def test_base_images_are_pinned(stages: Stages) -> None:
    for stage in stages:
        image = of(stage, "FROM")[0].arguments[0]
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", image), image


def test_nothing_is_fetched_by_add(stages: Stages) -> None:
    assert not any(of(stage, "ADD") for stage in stages)


def test_what_is_copied_exists_and_reaches_the_builder(stages: Stages, root: Path) -> None:
    lines = (root / ".dockerignore").read_text(encoding="utf-8").split()
    allowed = tuple(line.removeprefix("!") for line in lines if line.startswith("!"))
    for stage in stages:
        for copy in of(stage, "COPY"):
            for source in copy.arguments[:-1]:
                if not copy.rest.startswith("--from"):
                    assert (root / source).exists(), source
                    assert source.startswith(allowed), source


def test_the_server_does_not_run_as_root(stages: Stages, docker: Path) -> None:
    keywords = [instruction.keyword for instruction in stages[-1]]
    (user,) = of(stages[-1], "USER")
    uid, gid = user.rest.split(":")
    step = (docker / "steps" / "create_user.sh").read_text(encoding="utf-8")
    assert int(uid) > 0
    assert f"--uid {uid}" in step
    assert f"--gid {gid}" in step
    assert keywords.index("USER") > max(i for i, keyword in enumerate(keywords) if keyword == "RUN")
    assert keywords.index("USER") < keywords.index("ENTRYPOINT")


def test_the_image_declares_how_it_is_run(stages: Stages) -> None:
    stage = stages[-1]
    environment = dict(pair.split("=", 1) for pair in of(stage, "ENV")[0].arguments)
    assert environment["HF_HOME"] in of(stage, "VOLUME")[0].arguments
    assert of(stage, "EXPOSE")[0].rest == "8000"
    assert of(stage, "STOPSIGNAL")[0].rest == "SIGTERM"
    assert "healthcheck.py" in of(stage, "HEALTHCHECK")[0].rest


def test_the_configuration_of_the_image_is_valid(stages: Stages, docker: Path) -> None:
    (entrypoint,) = of(stages[-1], "ENTRYPOINT")
    assert "/etc/headway/config.yaml" in entrypoint.arguments
    settings = load_settings(docker / "config.yaml", environment={"HEADWAY_API_KEYS": "secret"})
    assert settings.engine.model.name == "needle"
    assert [key.get_secret_value() for key in settings.server.api_keys] == ["secret"]


def test_both_images_are_run_alike(docker: Path) -> None:
    """From the user on, the Dockerfiles differ in their volumes only."""
    ends = []
    for name in ("Dockerfile", "Dockerfile.cpu"):
        _, end = (docker / name).read_text(encoding="utf-8").split("USER ")
        ends.append([line for line in end.splitlines() if not line.startswith("VOLUME")])
    assert ends[0] == ends[1]


def test_the_cuda_set_extends_the_cpu_set(docker: Path, root: Path) -> None:
    lines = (docker / "constraints-cuda.txt").read_text(encoding="utf-8").splitlines()
    assert "-c ../constraints.txt" in lines
    pins = [line.split("==")[0].lower() for line in lines if "==" in line]
    cpu = {line.split("==")[0].lower() for line in (root / "constraints.txt").read_text().splitlines()}
    assert len(pins) == len(set(pins))
    assert not cpu & set(pins)


@pytest.mark.parametrize("name", ["config.yaml", "compose-config.yaml", "compose.yaml", "hadolint.yaml"])
def test_the_yaml_files_have_no_double_keys(docker: Path, name: str) -> None:
    def check(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), keys
            for _, value in node.value:
                check(value)

    check(yaml.compose((docker / name).read_text(encoding="utf-8")))
