"""The profile format: what is written is read, and only for the model it was made of."""

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from headway.engine.config_section import Section
from headway.engine.errors import ConfigError
from headway.engine.profile import artefact

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.bool)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


class Asked(Section):
    lengths: tuple[int, ...] = (1, 2)
    name: str = Field("x")


@pytest.fixture(scope="module")
def loaded(load_family):
    return load_family("llama")


def tensor(shape, dtype, seed):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    values[values > 1.5] = torch.nan
    return (
        (values > 0)
        if dtype is torch.bool
        else values.nan_to_num().to(dtype)
        if dtype is torch.int32
        else values.to(dtype)
    )


@given(
    tensors=st.dictionaries(
        st.text("ab.1", min_size=1, max_size=4),
        st.tuples(
            st.lists(st.integers(0, 3), max_size=3), st.sampled_from(DTYPES), st.integers(0, 9)
        ),
        min_size=1, max_size=3,
    ),
    findings=st.dictionaries(st.text("abc", max_size=3), JSON, max_size=3),
    suffix=st.sampled_from(("", ".json", ".safetensors")),
)  # fmt: skip
def test_what_is_saved_is_loaded(loaded, tmp_path_factory, tensors, findings, suffix):
    folder = tmp_path_factory.mktemp("profile")
    written = {name: tensor(*how) for name, how in tensors.items()}
    made = artefact.made(
        loaded, "kind", written, settings=Asked(lengths=(3,)), seeds=[4, 5], length=9, findings=findings
    )
    artefact.save(folder / "deep" / "a.b", made)
    read = artefact.load(folder / "deep" / f"a.b{suffix}")
    read.check(loaded)
    assert read.facts == made.facts
    assert (read.facts.seeds, read.facts.settings) == ((4, 5), {"lengths": [3], "name": "x"})
    assert read.facts.findings == findings
    assert read.tensors.keys() == written.keys()
    for name, values in written.items():
        assert read.tensors[name].dtype == values.dtype
        assert torch.equal(read.tensors[name].nan_to_num(7), values.nan_to_num(7))


@pytest.fixture
def saved(loaded, tmp_path):
    made = artefact.made(loaded, "kind", {"a": torch.ones(2)}, settings=Asked(), seeds=[0], length=9)
    artefact.save(tmp_path / "kind", made)
    return tmp_path / "kind"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "version 2; this Headway reads 1"),
        ({"version": None}, "version None"),
        ({"extra": 1}, "damaged: extra"),
        ({"seeds": ["x"]}, "damaged: seeds"),
    ],
)
def test_an_unknown_version_and_damage_are_named(saved, change, reason):
    path = saved.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=reason):
        artefact.load(saved)


@pytest.mark.parametrize("half", [".json", ".safetensors"])
@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b"\xff"])
def test_a_missing_or_damaged_half_is_refused(saved, half, damage):
    path = saved.with_suffix(half)
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(ConfigError, match="the profile"):
        artefact.load(saved)
    assert artefact.exists(saved) == (damage is not None)


def test_a_save_that_breaks_off_leaves_no_old_facts_with_new_tensors(loaded, saved, monkeypatch):
    def fails(_):
        raise OSError("disk full")

    monkeypatch.setattr(artefact, "to_bytes", fails)
    with pytest.raises(OSError, match="disk full"):
        artefact.save(saved, artefact.made(loaded, "k", {}, settings=Asked(), seeds=[], length=1))
    assert not artefact.exists(saved)


def test_another_model_is_refused_with_the_reason(load_family, saved):
    profile = artefact.load(saved)
    with pytest.raises(
        ConfigError, match=r"other weights than olmo2; make one .* headway profile olmo2 --what kind"
    ):
        profile.check(load_family("olmo2"))
    with pytest.raises(ConfigError, match=r"RoPE parameters .*'default'.*, not with .*'yarn'"):
        profile.check(load_family("llama-yarn"))
    llama = load_family("llama")
    half = SimpleNamespace(model=llama.model, dtype=torch.bfloat16, fingerprint=b"\1" * 32)
    with pytest.raises(ConfigError, match="made in float32, not in bfloat16"):
        profile.check(half)


def test_needle_is_called_by_its_name_and_no_path_is_written(loaded, saved):
    facts = json.loads(saved.with_suffix(".json").read_text())
    assert facts["model"] == "llama"
    assert str(loaded.model.name_or_path) not in saved.with_suffix(".json").read_text()
