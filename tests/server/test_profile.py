"""`headway profile`."""

import sys
from pathlib import Path

import pytest

from headway.engine import profile
from headway.engine.profile.artefact import Facts
from headway.server import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["headway", "profile", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_help_names_every_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile.names() == cli.PROFILE_KINDS
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    options = ["--what", "--out", "--settings", "--force", "--config", "--dtype", "--device", "--threads"]
    assert all(name in text for name in (*cli.PROFILE_KINDS, *options))


def test_the_document_names_every_kind_and_every_key_of_the_format() -> None:
    text = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text(encoding="utf-8")
    assert all(f"| `{kind}` |" in text for kind in profile.names())
    assert all(f"`{key}`" in text for key in Facts.model_fields)


def test_profiles_are_made_once_and_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings, out = tmp_path / "settings.yaml", tmp_path / "out"
    settings.write_text("sinks: {length: 256, texts: 1}\noutliers: {length: 256, texts: 1}\n")
    arguments = ("needle", "--what", "sinks, outliers", "--out", str(out), "--settings", str(settings))
    assert run(monkeypatch, *arguments, "--threads", "1") == 0
    assert f"{out.name}/sinks.json" in capsys.readouterr().err.replace("\n", "")
    names = {path.name for path in out.iterdir()}
    assert names == {"report.html", *(f"{kind}.{end}" for kind in ("sinks", "outliers")
                                      for end in ("json", "safetensors", "png"))}  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert run(monkeypatch, *arguments, "--threads", "1") == 0
    assert capsys.readouterr().err.count("--force makes it anew") == 2
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")} == before
    assert run(monkeypatch, *arguments, "--threads", "1", "--force") == 0
    assert all(path.stat().st_mtime_ns > time for path, time in before.items())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--what", "retrieva"], "did you mean 'retrieval'"),
        (["--what", ""], "'' is unknown"),
        (["--settings", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--dtype", "float8"], "model.dtype"),
    ],
)
def test_wrong_orders_end_with_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    told: str,
) -> None:
    assert run(monkeypatch, "--out", str(tmp_path), *arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_without_matplotlib_the_profile_stands_and_the_report_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("outliers: {length: 256, texts: 1}\n")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ("--what", "outliers", "--out", str(tmp_path), "--settings", str(settings), "--threads", "1")
    assert run(monkeypatch, *arguments) == 0
    assert "pictures need matplotlib" in capsys.readouterr().err
    assert (tmp_path / "outliers.json").is_file()
    assert not (tmp_path / "report.html").exists()
