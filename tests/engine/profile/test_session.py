"""Sessions: what is made, what is kept, what is refused; and the page about it."""

import re
from html.parser import HTMLParser

import pytest

from headway.engine import profile
from headway.engine.errors import ConfigError
from headway.engine.profile import artefact, outliers, report
from headway.engine.profile.progress import Silent, tracked
from headway.engine.profile.session import Session

from .readable import readable

SETTINGS = {"outliers": {"length": 256, "texts": 1}}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return readable("llama", tmp_path_factory.mktemp("model"))


def open_session(out, kinds=("outliers",), settings=SETTINGS, *, force=False):
    return Session(out, kinds, settings, force=force)


def test_every_kind_refuses_settings_it_does_not_know():
    assert {"outliers", "retrieval", "sinks"} <= set(profile.names())
    for name in profile.names():
        settings = profile.load(name).Settings
        assert settings.model_config["frozen"]
        assert settings.model_config["extra"] == "forbid"


def test_what_is_finished_is_not_made_again(loaded, tmp_path):
    first = open_session(tmp_path)
    assert first.finished(loaded, "outliers") is None
    first.make(loaded, "outliers", Silent(first.checkpoint("outliers")))
    kept = open_session(tmp_path).finished(loaded, "outliers")
    assert kept.facts.kind == "outliers"
    assert open_session(tmp_path, force=True).finished(loaded, "outliers") is None


def test_a_checkpoint_lives_until_the_profile_is_saved(loaded, tmp_path, monkeypatch):
    seen = []
    whole = outliers.run

    def breaks_off(loaded, settings, progress):
        seen.append(progress.checkpoint.exists())
        progress.checkpoint.write_text("half")
        if len(seen) == 1:
            raise RuntimeError("out of power")
        return whole(loaded, settings, progress)

    monkeypatch.setattr(outliers, "run", breaks_off)
    made = open_session(tmp_path / "new")
    progress = Silent(made.checkpoint("outliers"))
    with pytest.raises(RuntimeError, match="out of power"):
        made.make(loaded, "outliers", progress)
    assert made.finished(loaded, "outliers") is None
    made.make(loaded, "outliers", progress)
    assert not progress.checkpoint.exists()
    progress.checkpoint.write_text("stale")
    open_session(tmp_path / "new", force=True).make(loaded, "outliers", progress)
    assert seen == [False, True, False]


def test_what_stands_in_the_way_is_refused(loaded, tmp_path, tmp_path_factory):
    made = open_session(tmp_path)
    made.make(loaded, "outliers", Silent())
    other = {"outliers": {**SETTINGS["outliers"], "ratio": 2.0}}
    with pytest.raises(ConfigError, match=r"outliers.json was made with ratio = 4.0; --force replaces it"):
        open_session(tmp_path, settings=other).finished(loaded, "outliers")
    another = readable("qwen3", tmp_path_factory.mktemp("another"))
    with pytest.raises(ConfigError, match=r"in the way; --force replaces it: .* of other weights"):
        open_session(tmp_path).finished(another, "outliers")


@pytest.mark.parametrize(
    ("kinds", "settings", "told"),
    [
        (["outlier"], {}, "'outlier' is unknown; did you mean 'outliers'"),
        (["outliers"], {"sinks": {}}, "'sinks' is not among --what: outliers"),
        (["outliers"], {"outliers": 3}, "outliers must be a mapping, not a int"),
        (["outliers"], {"outliers": {"texts": 0}}, "texts: .*greater than or equal to 1"),
        (["outliers"], {"outliers": {"text": 1}}, "text: unknown key; did you mean 'texts'"),
    ],
)
def test_wrong_orders_are_refused_before_a_model_is_loaded(tmp_path, kinds, settings, told):
    with pytest.raises(ConfigError, match=told):
        Session(tmp_path, kinds, settings, force=False)


class Links(HTMLParser):
    """Everything that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.sources, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]


def test_the_report_opens_without_a_network(loaded, tmp_path):
    made = open_session(tmp_path)
    found = made.make(loaded, "outliers", Silent())
    facts = found.facts.model_copy(update={"model": "<script>alert(1)</script>"})
    artefact.save(tmp_path / "outliers", artefact.Artefact(facts, found.tensors))
    page = report.write(tmp_path).read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert [source[:22] for source in links.sources] == ["data:image/png;base64,"]
    assert "script" not in links.tags
    assert not re.search(r"url\(|@import|https?:", page)
    assert "Channels of the cached keys" in page
    assert facts.fingerprint in page
    assert (tmp_path / "outliers.png").read_bytes().startswith(b"\x89PNG")


def test_a_profile_under_another_name_is_no_part_of_a_report(loaded, tmp_path):
    found = open_session(tmp_path).make(loaded, "outliers", Silent())
    artefact.save(tmp_path / "sinks", found)
    with pytest.raises(ConfigError, match="holds a profile of the kind 'outliers'"):
        report.write(tmp_path)


def test_every_step_is_told():
    told = []

    class Told(Silent):
        def begin(self, label, total):
            told.append((label, total))

        def advance(self, steps=1):
            told.append(steps)

    assert list(tracked(Told(), "part", "ab")) == ["a", "b"]
    assert told == [("part", 2), 1, 1]
