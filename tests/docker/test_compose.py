"""compose.yaml: valid, hardened, and in line with the images and the server."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headway.server.settings import load_settings

SERVERS = ("headway-cpu", "headway-gpu")


def test_it_follows_the_compose_specification(docker: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*command, str(docker / "compose.yaml")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def has_compose() -> bool:
    """Whether the compose plug-in is here; it needs no engine to read a file."""
    docker = shutil.which("docker")
    return bool(docker) and not subprocess.run([docker, "compose", "version"], capture_output=True).returncode


@pytest.mark.skipif(not has_compose(), reason="needs docker compose")
@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_docker_compose_reads_it(docker: Path, profile: str) -> None:
    command = ["docker", "compose", "--file", str(docker / "compose.yaml"), "--profile", profile, "config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_every_service_is_hardened(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_foreign_images_are_pinned(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        tag = service["image"].partition(":")[2]
        assert "build" in service or tag.lstrip("v")[0].isdigit()


def test_each_profile_has_one_server(compose: dict[str, Any], docker: Path) -> None:
    services = compose["services"]
    assert [services[name]["profiles"] for name in SERVERS] == [["cpu"], ["gpu"]]
    for name in SERVERS:
        build = services[name]["build"]
        assert (docker / build["context"] / build["dockerfile"]).is_file()
    assert all("profiles" not in services[name] for name in services if name not in SERVERS)
    (device,) = services["headway-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_what_is_mounted_exists_and_is_read_only(compose: dict[str, Any], docker: Path) -> None:
    for service in compose["services"].values():
        for source, target, *mode in (volume.split(":") for volume in service["volumes"]):
            if source.startswith("."):
                assert (docker / source).exists(), target
                assert mode == ["ro"]
            else:
                assert source in compose["volumes"]


def test_secrets_come_from_files_that_git_ignores(compose: dict[str, Any], root: Path) -> None:
    assert "/docker/secrets/" in (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert all(secret["file"].startswith("./secrets/") for secret in compose["secrets"].values())


def test_the_server_is_configured_from_the_mounted_file(
    compose: dict[str, Any], docker: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    config = docker / "compose-config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "api_key_file: /run/secrets/headway_api_key\n" in text
    settings = load_settings(config, {"server.api_key_file": str(key)}, environment={})
    assert len(settings.server.api_keys) == 1
    for name in SERVERS:
        service = compose["services"][name]
        assert f"./{config.name}:/etc/headway/config.yaml:ro" in service["volumes"]
        assert "headway_api_key" in service["secrets"]
        assert "models:/models" in service["volumes"]
        assert float(service["stop_grace_period"].removesuffix("s")) > settings.server.drain_seconds + 10
