"""lowrank: the directions, what they explain, and loki that takes them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headway.engine.build import build
from headway.engine.cache import KVCache
from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.errors import ConfigError
from headway.engine.key_moments import principal
from headway.engine.low_rank import provide_bases
from headway.engine.profile import artefact, moments
from headway.engine.profile.lowrank import Settings, directions_for, explained, picture, run
from headway.engine.profile.pictures import png
from headway.engine.profile.progress import Silent
from headway.engine.sidecars import Sidecar

from .readable import readable

SMALL = Settings(length=400, texts=1)


@pytest.fixture(scope="module")
def gqa(tmp_path_factory):
    return readable("llama", tmp_path_factory.mktemp("gqa"))


def basis_of(loaded, path):
    sidecar = Sidecar("low_rank", rank=6, basis=str(path))
    cache = KVCache(loaded.specs, 4, 8, loaded.dtype, loaded.device, [sidecar])
    provide_bases(loaded, cache, 32)
    return cache.sidecars.bases[sidecar]


@given(st.integers(2, 8), st.integers(0, 2**32))
def test_directions_come_back_in_order_of_their_variance(dim, seed):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(3, dim, dim, generator=generator, dtype=torch.float64)).Q
    variances = 3.0 ** -torch.arange(dim, dtype=torch.float64)
    covariance = directions @ (variances.unsqueeze(1) * directions.mT)
    found, columns = principal(covariance)
    torch.testing.assert_close(found, variances.expand(3, dim))
    # A direction has no sign.
    torch.testing.assert_close((columns.mT @ directions).abs(), torch.eye(dim).double().expand(3, dim, dim))


def test_explained_variance_and_the_directions_it_takes():
    variances = torch.tensor([[6.0, 3.0, 1.0, 0.0], [10.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(explained(variances)[0], torch.tensor([0.6, 0.9, 1.0, 1.0]))
    assert directions_for(variances, 0.6) == [1, 1]
    assert directions_for(variances, 0.8) == [2, 1]
    assert directions_for(variances, 0.95) == [3, 1]
    assert directions_for(torch.rand(1, 64) + 1, 1.0) == [64]


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "deepseek-v3"])
def test_the_columns_are_orthonormal_and_as_wide_as_the_profile_says(tmp_path, family):
    """MLA included, whose keys are latents."""
    loaded = readable(family, tmp_path)
    profile = run(loaded, SMALL.model_copy(update={"source": "haystacks"}), Silent())
    seen = moments.run(loaded, moments.Settings(length=400, texts=1), Silent())
    for spec in loaded.specs:
        columns, covariance = (
            profile.tensors[f"layers.{spec.layer_idx}"], seen.tensors[f"covariance.{spec.layer_idx}"]
        )  # fmt: skip
        assert columns.shape == (spec.num_kv_heads, spec.key_dim, spec.key_dim)
        eye = torch.eye(spec.key_dim).expand_as(columns)
        torch.testing.assert_close(columns.mT @ columns, eye, atol=1e-5, rtol=0)
        diagonal = torch.diag_embed(profile.tensors[f"variances.{spec.layer_idx}"])
        scale = float(covariance.abs().max())
        torch.testing.assert_close(columns.mT @ covariance @ columns, diagonal, atol=1e-4 * scale, rtol=0)
        needed = profile.facts.findings["directions"][str(spec.layer_idx)]
        assert list(needed.values()) == sorted(needed.values())


def test_loki_takes_the_first_directions_of_a_profile(gqa, tmp_path):
    profile = run(gqa, SMALL, Silent())
    artefact.save(tmp_path / "lowrank", profile)
    for name in ("lowrank", "lowrank.json", "lowrank.safetensors"):
        for layer_idx, basis in basis_of(gqa, tmp_path / name).items():
            assert torch.equal(basis, profile.tensors[f"layers.{layer_idx}"][..., :6])


def test_a_profile_of_another_kind_is_refused(gqa, tmp_path):
    settings = moments.Settings(length=300, texts=1)
    artefact.save(tmp_path / "moments", moments.run(gqa, settings, Silent()))
    with pytest.raises(ConfigError, match=r"basis: .* of kind moments; it must be lowrank"):
        basis_of(gqa, tmp_path / "moments")


def test_a_profile_of_another_model_is_refused(gqa, tmp_path):
    artefact.save(tmp_path / "lowrank", run(gqa, SMALL, Silent()))
    readable("llama", tmp_path / "other", hidden_size=96)
    config = {
        "model": {"name": str(tmp_path / "other"), "threads": 1},
        "cache": {"memory_gib": 0.01},
        "recipe": {"decode": {"method": "loki", "basis": str(tmp_path / "lowrank")}},
    }
    with pytest.raises(ConfigError, match=r"recipe\.decode\.basis: the lowrank profile of .* other weights"):
        build(parse(EngineConfig, config))


def test_haystacks_give_other_directions_than_random_tokens(gqa):
    tokens, texts = (
        run(gqa, SMALL.model_copy(update={"source": source}), Silent()) for source in ("tokens", "haystacks")
    )
    assert tokens.facts.findings["tokens"] == SMALL.length
    assert 0 < texts.facts.findings["tokens"] < SMALL.length
    assert not torch.allclose(tokens.tensors["layers.0"], texts.tensors["layers.0"], atol=0.1)


def test_its_picture_is_a_picture(gqa):
    pytest.importorskip("matplotlib")
    assert png(picture(run(gqa, SMALL, Silent()))).startswith(b"\x89PNG")
