"""The profiles that the repository holds are needle's."""

import shutil
from pathlib import Path

import pytest

from headway.engine import profile
from headway.engine.config import ModelConfig
from headway.engine.loading import load
from headway.engine.profile import artefact, report

FOLDER = Path(__file__).parents[3] / "configs" / "profiles" / "needle"
PROFILES = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.fixture(scope="module")
def needle():
    return load(ModelConfig(name="needle", threads=1))


def test_every_profile_is_a_pair_of_small_files():
    assert {"outliers", "retrieval", "sinks"} <= set(PROFILES)
    assert sorted(path.stem for path in FOLDER.glob("*.safetensors")) == PROFILES
    assert all(path.stat().st_size < 500_000 for path in FOLDER.iterdir())


@pytest.mark.parametrize("kind", PROFILES)
def test_a_profile_is_of_needle_and_made_with_settings_that_still_exist(needle, kind):
    found = artefact.load(FOLDER / kind)
    found.check(needle)
    assert found.facts.kind == kind
    assert found.facts.model == "needle"
    settings = profile.load(kind).Settings
    assert settings(**found.facts.settings).model_dump(mode="json") == found.facts.settings
    assert found.tensors


def test_they_all_stand_in_one_report(tmp_path):
    for path in FOLDER.iterdir():
        shutil.copy(path, tmp_path)
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert all(f"<h2>{kind}</h2>" in page for kind in PROFILES)
    drawn = [kind for kind in PROFILES if hasattr(profile.load(kind), "picture")]
    assert page.count("data:image/png;base64,") == len(drawn) >= 3
