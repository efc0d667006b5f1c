"""The probe reads off every layer what it really asks of attention."""

import pytest
import torch

from headway.engine import forward_context
from headway.engine.cache import KVCache, page_bytes
from headway.engine.forward_context import rows
from headway.engine.patch import attached


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama", [None, None]),
        ("mistral", [8, 8]),
        ("gemma2", [8, None]),
        ("gemma3", [8, None]),
        ("gpt-oss", [8, None]),
        ("olmo3", [8, None]),
        ("cohere2", [8, None]),
        ("exaone4", [8, None]),  # its full layer carries a sliding_window attribute
    ],
)
def test_windows(load_family, family, windows):
    assert [spec.window for spec in load_family(family).specs] == windows


def test_gemma2_softcap_and_scale(load_family):
    specs = load_family("gemma2").specs
    assert [spec.softcap for spec in specs] == [5.0, 5.0]
    assert [spec.scale for spec in specs] == [pytest.approx(32**-0.5)] * 2


def test_gpt_oss_sinks_are_the_layers_own(load_family):
    loaded = load_family("gpt-oss")
    for spec, layer in zip(loaded.specs, loaded.model.model.layers, strict=True):
        assert spec.sinks is not None
        assert torch.equal(spec.sinks, layer.self_attn.sinks)


@pytest.mark.parametrize(
    ("family", "styles"),
    [
        ("llama", ["half", "half"]),
        ("stablelm", ["half", "half"]),
        ("glm4", ["interleaved", "interleaved"]),
        ("cohere2", ["interleaved", "none"]),
        ("smollm3", ["half", "none"]),
        ("deepseek-v3", ["half", "half"]),
        ("deepseek-v2", ["interleaved", "interleaved"]),
        ("hunyuan", ["unknown", "unknown"]),
        ("opt", ["none", "none"]),
    ],
)
def test_rope_styles(load_family, family, styles):
    assert [spec.rope for spec in load_family(family).specs] == styles


def test_gemma4_shares_kv_and_has_two_head_sizes(load_family):
    specs = load_family("gemma4").specs
    assert [spec.kv_source for spec in specs] == [0, 1, 0, 1]
    assert [spec.key_dim for spec in specs] == [16, 32, 16, 32]
    assert [spec.owns_cache for spec in specs] == [True, True, False, False]
    per_token = 2 * (16 + 16 + 32 + 32) * 4
    assert page_bytes(specs, 8, torch.float32) == 8 * per_token
    assert KVCache(specs, 3, 8, torch.float32, torch.device("cpu")).nbytes() == 3 * 8 * per_token


def test_gemma3n_shares_kv(load_family):
    assert [spec.kv_source for spec in load_family("gemma3n").specs] == [0, 1, 0, 1]


def test_mla_caches_latents_only(load_family):
    specs = load_family("deepseek-v3").specs
    assert [(spec.num_kv_heads, spec.key_dim, spec.latent_dim) for spec in specs] == [(1, 24, 16)] * 2
    expanded = 2 * 4 * (24 + 16) * 4  # two layers of 4 heads, keys of 24 and values of 16 numbers
    cache = KVCache(specs, 5, 8, torch.float32, torch.device("cpu"))
    assert page_bytes(specs, 1, torch.float32) == 2 * 24 * 4 < expanded / 6
    assert cache.nbytes() == 5 * 8 * 2 * 24 * 4


def test_the_sweep_covers_strided_queries(load_family):
    """Kernels must take what the families hand over; some of them hand over strided views."""
    for family, strided in {"llama": False, "phi3": True, "glm4": True, "gpt-oss": True}.items():
        assert _query_is_strided(load_family(family)) == strided


def _query_is_strided(loaded) -> bool:
    found = []

    class Recorder:
        rope_groups = ()

        def attend(self, call):
            found.append(not rows(call.query).is_contiguous())
            return call.query.new_zeros(1, call.query.shape[2], call.query.shape[1], call.value.shape[-1])

    with torch.inference_mode(), attached(loaded.model), forward_context.entered(Recorder()):
        loaded.model(input_ids=torch.arange(5).unsqueeze(0), use_cache=False)
    return found[0]
