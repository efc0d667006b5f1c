"""The `headway` command."""

import sys
from pathlib import Path

import pytest

import headway
from headway.server import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["headway", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "version") == 0
    assert capsys.readouterr().out == f"{headway.__version__}\n"


@pytest.mark.parametrize("command", ["serve", "ask", "version"])
def test_help_names_every_command_and_option(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--help") == 0
    assert command in capsys.readouterr().out
    assert run(monkeypatch, command, "--help") == 0
    text = capsys.readouterr().out
    options = ["--config", "--dtype", "--device", "--max-context", "--memory", "--threads"]
    expected = {
        "serve": [*options, "--host", "--port", "--api-key", "--served-model-name", "needle"],
        "ask": [*options, "--model", "--max-tokens", "FILE", "QUESTION"],
        "version": [],
    }
    assert all(option in text for option in expected[command])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve", "--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["serve", "--port", "70000"], "server.port"),
        (["serve", "--dtype", "float8"], "model.dtype"),
        (["serve", "--memory", "-1"], "cache.memory_gib"),
        (["serve", "--host", "no.such.host.invalid"], "server.host"),
        (["ask", "nowhere.txt", "What?"], "cannot read nowhere.txt"),
    ],
)
def test_wrong_settings_end_with_2_and_no_traceback(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_a_wrong_key_in_the_file_names_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "headway.yaml"
    file.write_text("server: {prot: 1}")
    assert run(monkeypatch, "serve", "--config", str(file)) == 2
    assert "'port'" in capsys.readouterr().err


def test_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "notes.txt"
    half = "The grass is green. The sky is blue. " * 50
    file.write_text(f"{half}The secret code for Paris is 7301942. {half}")
    question = "What is the secret code for Paris?"
    assert run(monkeypatch, "ask", str(file), question, "--threads", "1", "--memory", "0.1") == 0
    printed = capsys.readouterr()
    assert printed.out.strip()
    assert "prompt tokens in" in printed.err
