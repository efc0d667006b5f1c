"""Loading: what is taken from the checkpoint, what is overridden, and clear errors."""

import json

import pytest
import torch
from transformers.integrations import hub_kernels

from headway.engine import loading
from headway.engine.config import ModelConfig
from headway.engine.errors import ConfigError, ModelRefused
from headway.engine.loading import load

from .families import VOCAB, build, save

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save("llama", tmp_path_factory.mktemp("checkpoint"))


def load_from(path, **settings):
    return load(ModelConfig(name=str(path), **settings))


def test_facts(checkpoint):
    loaded = load_from(checkpoint)
    assert (loaded.vocab_size, loaded.max_context, loaded.dtype) == (VOCAB, 512, torch.float32)
    assert loaded.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert [spec.layer_idx for spec in loaded.specs] == [0, 1]
    assert not loaded.model.training


def test_needle_is_the_embedded_model():
    loaded = load(ModelConfig())
    assert loaded.max_context >= 65_536
    assert loaded.eos_token_ids


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("/nowhere/model", ConfigError, "no folder /nowhere/model"),
        ("./nowhere", ConfigError, "no folder ./nowhere"),
        ("a/b/c", ConfigError, "no folder a/b/c"),
        ("not a hub id", ModelRefused, "cannot load not a hub id"),
    ],
)
def test_what_cannot_be_had(name, error, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=message):
        load(ModelConfig(name=name))


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelRefused, match="cannot load"):
        load_from(tmp_path)


def test_broken_weights(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelRefused, match="cannot load"):
        load_from(tmp_path)


def test_missing_weights_are_not_made_up(tmp_path):
    model = build("llama")
    kept = {name: weight for name, weight in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ModelRefused, match=r"layers\.1\.mlp"):
        load_from(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(checkpoint):
    with pytest.raises(ConfigError, match=r"model\.device"):
        load_from(checkpoint, device="cuda")


@pytest.mark.parametrize(
    ("stored", "fast", "chosen"),
    [("bfloat16", True, "bfloat16"), ("bfloat16", False, "float32"), ("float16", True, "float32")],
)
def test_auto_dtype_on_a_cpu(tmp_path, monkeypatch, stored, fast, chosen):
    model = build("llama").to(getattr(torch, stored))
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "_fast_bfloat16", lambda: fast)
    assert load_from(tmp_path, device="cpu").dtype == getattr(torch, chosen)


def test_dtype_override(checkpoint):
    loaded = load_from(checkpoint, dtype="bfloat16")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


def test_rope_override_lengthens_the_context(checkpoint):
    loaded = load_from(checkpoint, rope_scaling=YARN)
    assert loaded.max_context == 2048
    assert loaded.model.config.rope_parameters["rope_theta"] == 10000.0
    assert loaded.model.model.rotary_emb.rope_type == "yarn"


def test_rope_override_with_the_older_key(checkpoint):
    loaded = load_from(checkpoint, rope_scaling={"type": "dynamic", "factor": 3.0})
    assert loaded.max_context == 1536
    assert loaded.rope.rope_key(1000) != loaded.rope.rope_key(1001)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "yarm", "factor": 2.0}, "yarm.*yarn"),
        ({"factor": 2.0}, "rope_type"),
        ({"rope_type": "yarn"}, "factor"),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fats": 1}, "beta_fats: unknown key.*beta_fast"),
        ({"rope_type": "yarn", "factor": float("nan")}, "factor"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": ["a"]}, "long_factor"),
        ({"rope_type": "linear", "factor": "two"}, "factor"),
    ],
)
def test_a_wrong_rope_override(checkpoint, scaling, message):
    with pytest.raises(ConfigError, match=message):
        load_from(checkpoint, rope_scaling=scaling)


def test_rope_override_of_a_model_without_rope(tmp_path):
    with pytest.raises(ConfigError, match="no RoPE"):
        load_from(save("opt", tmp_path), rope_scaling=YARN)


def test_rope_override_reaches_the_full_attention_layers_only(tmp_path):
    parameters = load_from(save("gemma3", tmp_path), rope_scaling=YARN).model.config.rope_parameters
    assert parameters["full_attention"]["rope_type"] == "yarn"
    assert parameters["sliding_attention"]["rope_type"] == "default"


def test_end_tokens_of_both_configurations(tmp_path):
    path = save("llama", tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert load_from(path).eos_token_ids == (5, 7)


def test_the_fingerprint_covers_what_changes_kv(checkpoint, tmp_path):
    seen = {load_from(checkpoint).fingerprint}
    assert {load_from(checkpoint).fingerprint} == seen
    seen.add(load_from(checkpoint, dtype="bfloat16").fingerprint)
    seen.add(load_from(checkpoint, rope_scaling=YARN).fingerprint)
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3, 5] += 1e-3
    model.save_pretrained(tmp_path)
    seen.add(load_from(tmp_path).fingerprint)
    assert len(seen) == 4


def test_code_of_a_checkpoint_is_not_run(checkpoint, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "made_up", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelRefused, match="trust_remote_code"):
        load_from(tmp_path)


def test_hub_kernels_are_off_while_loading(checkpoint, monkeypatch):
    seen = []
    monkeypatch.setattr(loading, "probe", lambda *_: seen.append(hub_kernels._kernels_enabled) or ())
    monkeypatch.setattr(loading, "self_check", lambda _: None)
    before = hub_kernels._kernels_enabled
    load_from(checkpoint)
    assert seen == [False]
    assert hub_kernels._kernels_enabled == before
