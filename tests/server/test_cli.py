"""The `headway` command."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import headway
from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.methods.kind import DECODE, PREFILL
from headway.engine.selection.settings import BudgetSettings
from headway.server import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["headway", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "version") == 0
    assert capsys.readouterr().out == f"{headway.__version__}\n"


@pytest.mark.parametrize("command", ["serve", "ask", "recipes", "version"])
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
        "recipes": ["METHOD", "recipe"],
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
        (["recipes", "qust"], "'quest'"),
    ],
)
def test_wrong_settings_end_with_2_and_no_traceback(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("server: {prot: 1}", "server.prot: unknown key; did you mean 'port'"),
        ("recipe: {decode: {method: qust}}", "recipe.decode.method: 'qust' is unknown; did you mean 'quest'"),
        (
            "recipe: {decode: {method: quest, bugdet: 1}}",
            "recipe.decode.bugdet: unknown key; did you mean 'budget'",
        ),
        ("recipe: {decode: {method: quest, budget: 300}}", "recipe.decode.budget: must hold the 320 tokens"),
        ("recipe: {requests: {methods: [qust]}}", "recipe.requests.methods: 'qust' is unknown"),
        ("recipe: {prefill: {method: quest}}", "recipe.prefill.method: 'quest' is unknown; did you mean"),
        (
            "recipe: {decode: {method: h2o}, prefill: {method: streaming}}",
            "recipe.prefill.method: the decode method h2o watches the whole prompt",
        ),
    ],
)
def test_a_wrong_file_ends_the_start_and_names_the_nearest(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "headway.yaml"
    file.write_text(text)
    assert run(monkeypatch, "serve", "--config", str(file)) == 2
    assert told in capsys.readouterr().err


def test_recipes_lists_every_method(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run(monkeypatch, "recipes") == 0
    text = capsys.readouterr().out
    first, second = text[: text.index("Decode methods")], text[text.index("Decode methods") :]
    assert all(f"│ {name} " in first for name in PREFILL.names())
    assert all(f"│ {name} " in second for name in DECODE.names())
    assert all(setting in text for setting in (*BudgetSettings.model_fields, *PREFILL.common.model_fields))
    assert "of its KV" in text


@pytest.mark.parametrize("name", sorted({*DECODE.names(), *PREFILL.names()}))
def test_recipes_shows_the_methods_of_a_name_in_full(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run(monkeypatch, "recipes", name) == 0
    text = capsys.readouterr().out
    kinds = [kind for kind in (DECODE, PREFILL) if name in kind.names()]
    _, *parts = text.split(f"╭─ {name}, in ")
    for kind, part in zip(kinds, parts, strict=True):
        schema, _ = kind.load(name)
        assert part.startswith(kind.name)
        assert all(f"│ {setting} " in part for setting in schema.model_fields if setting != "method")
        example = yaml.safe_load(part[part.index("recipe:\n") :])
        assert getattr(parse(EngineConfig, example).recipe, kind.name) == kind.defaults(name)


def test_help_is_there_at_once() -> None:
    """Importing torch takes seconds."""
    code = "import sys; import headway.server.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "notes.txt"
    half = "The grass is green. The sky is blue. " * 50
    file.write_text(f"{half}The secret code for Paris is 7301942. {half}")
    question = "What is the secret code for Paris?"
    assert run(monkeypatch, "ask", str(file), question, "--threads", "1", "--memory", "0.1") == 0
    printed = capsys.readouterr()
    assert printed.out.strip()
    assert "prompt tokens in" in printed.err
