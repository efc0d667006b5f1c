"""Settings from file, environment and command line."""

from pathlib import Path

import pytest

from headway.engine.errors import ConfigError
from headway.server.settings import load_settings


def write(folder: Path, text: str) -> Path:
    file = folder / "headway.yaml"
    file.write_text(text)
    return file


def test_later_sources_win(tmp_path: Path) -> None:
    file = write(tmp_path, "model: {name: a, dtype: float32}\nserver: {port: 9000}\nwatchdog_seconds: 5\n")
    settings = load_settings(file, {"model.name": "b", "server.host": None, "cache.page_size": 32}, {})
    assert (settings.engine.model.name, settings.engine.model.dtype) == ("b", "float32")
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 9000)
    assert (settings.engine.cache.page_size, settings.engine.watchdog_seconds) == (32, 5)


def test_keys_of_all_sources_are_accepted_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("key-3\nkey-4\n")
    file = write(tmp_path, f"server: {{api_keys: [key-1], api_key_file: {tmp_path / 'keys'}}}")
    settings = load_settings(file, None, {"HEADWAY_API_KEYS": "key-5, key-6,"})
    keys = [key.get_secret_value() for key in settings.server.api_keys]
    assert keys == [f"key-{number}" for number in (1, 3, 4, 5, 6)]
    assert "key-" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("server: {prot: 1}", ["server.prot", "'port'"]),
        ("sever: {port: 1}", ["sever", "'server'"]),
        ("model: {nam: x}", ["model.nam", "'name'"]),
        ("server: {port: 70000}", ["server.port", "65535"]),
        ("server: {port: high}", ["server.port"]),
        ("server: {keep_alive_seconds: 0}", ["server.keep_alive_seconds"]),
        ("server: 5", ["server"]),
        ("server: {api_keys: secret}", ["server.api_keys", "list of strings"]),
        ("server: {api_keys: [123456]}", ["server.api_keys", "list of strings"]),
        ("server: {api_keys: {secret: 1}}", ["server.api_keys", "list of strings"]),
        ("server: {api_keys: ['  ']}", ["server.api_keys"]),
        ("server: {api_key_file: /nowhere/keys}", ["server.api_key_file", "No such file"]),
        ("server: {api_key_file: /dev/null}", ["server.api_key_file", "holds no key"]),
    ],
)
def test_errors_name_the_key_but_no_secret(text: str, told: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path, text), None, {})
    message = str(caught.value)
    assert all(part in message for part in told), message
    assert "secret" not in message
    assert "123456" not in message


def test_who_names_keys_but_gives_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="HEADWAY_API_KEYS: it is set, but holds no key"):
        load_settings(None, None, {"HEADWAY_API_KEYS": " ,"})
    assert load_settings(None, None, {"HEADWAY_API_KEYS": ""}).server.api_keys == ()


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"server: \xff")
    with pytest.raises(ConfigError, match=r"server\.api_key_file: not UTF-8"):
        load_settings(write(tmp_path, f"server: {{api_key_file: {tmp_path / 'binary'}}}"), None, {})
    with pytest.raises(ConfigError, match="binary is not UTF-8"):
        load_settings(tmp_path / "binary", None, {})


def test_a_section_that_is_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model"):
        load_settings(write(tmp_path, "model: needle"), {"model.dtype": "float32"}, {})


def test_the_default_file_says_the_defaults() -> None:
    default = Path(__file__).parents[2] / "configs" / "default.yaml"
    assert load_settings(default, None, {}) == load_settings(None, None, {})
