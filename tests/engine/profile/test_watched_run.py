"""A watched run computes what the model computes, and shows what it attends to."""

import pytest
import torch

from headway.engine.errors import ConfigError
from headway.engine.profile import watched_run
from headway.engine.profile.attention_rows import row_logits, row_weights
from headway.engine.profile.watched_run import WatchedRun

# GQA; softcap, window and scale of its own; sink logits; shared KV; MLA; RoPE by length.
FAMILIES = ["llama", "gemma2", "gpt-oss", "gemma3n", "deepseek-v3", "llama-dynamic", "gpt2"]
LENGTH, PROBED = 83, 11


def own_pass(loaded, ids):
    loaded.model.set_attn_implementation("eager")
    with torch.inference_mode():
        return loaded.model(
            torch.tensor([ids]), use_cache=False, output_attentions=True, output_hidden_states=True
        )


def tokens(seed, length=LENGTH):
    return torch.randint(128, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_and_logits_are_the_models_own(load_family, family, monkeypatch):
    monkeypatch.setattr(watched_run, "CHUNK", 32)
    loaded, ids = load_family(family), tokens(1)
    expected = own_pass(loaded, ids)
    weights, likeliest = {}, {}

    def watch(spec, query, keys):
        assert len(keys) == LENGTH
        weights[spec.layer_idx] = row_weights(spec, query[-PROBED:], keys)
        likeliest[spec.layer_idx] = row_logits(spec, query[-PROBED:], keys).argmax(-1)

    with WatchedRun(loaded, LENGTH) as run:
        run.read(ids[:32])
        run.step(ids[32:50], 32, logits=1)
        output = run.step(ids[50:], 50, watch, logits=PROBED, output_hidden_states=True)
        written = run.answer(ids[:50], ids[50:-PROBED], ids[-PROBED:])
    assert loaded.model.config._attn_implementation == "eager"
    torch.testing.assert_close(output.logits[0], expected.logits[0, -PROBED:], atol=2e-3, rtol=1e-3)
    assert torch.equal(written, expected.logits[0, -PROBED - 1 : -1].argmax(-1))
    # Of gemma3n's streams, the first.
    states = expected.hidden_states[1].reshape(-1, LENGTH, 64)[0, 50:]
    found = output.hidden_states[1].reshape(-1, LENGTH - 50, 64)[0]
    torch.testing.assert_close(found, states, atol=2e-3, rtol=1e-3)
    for layer, attention in enumerate(expected.attentions):
        rows = attention[0, :, -PROBED:].transpose(0, 1)
        torch.testing.assert_close(weights[layer], rows, atol=1e-3, rtol=1e-2)
        peaks = rows.gather(-1, likeliest[layer][..., None]).squeeze(-1)
        torch.testing.assert_close(peaks, rows.amax(-1), atol=1e-3, rtol=1e-2)


def test_what_was_read_before_is_forgotten(load_family):
    loaded = load_family("llama")
    with WatchedRun(loaded, LENGTH) as run:
        run.read(tokens(2))
        run.read(tokens(1))
        again = run.answer(tokens(1)[:70], tokens(1)[70:80], tokens(1)[80:])
    assert torch.equal(again, own_pass(loaded, tokens(1)).logits[0, 79:-1].argmax(-1))


def test_silenced_heads_put_out_zeros_and_come_back(load_family):
    loaded, ids = load_family("llama"), tokens(3)

    def zero(_, inputs):
        rows = inputs[0].clone()
        rows[..., 16:32] = 0
        rows[..., 48:64] = 0
        return (rows,)

    hook = loaded.model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(zero)
    expected = own_pass(loaded, ids).logits
    hook.remove()
    with WatchedRun(loaded, LENGTH) as run:
        with run.silenced([(1, 1), (1, 3)]):
            silenced = run.step(ids, 0, logits=LENGTH).logits
        whole = run.step(ids, 0, logits=LENGTH).logits
    torch.testing.assert_close(silenced, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(whole, own_pass(loaded, ids).logits, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(whole, silenced, atol=1e-2)


def test_what_does_not_fit_is_refused(load_family):
    with WatchedRun(load_family("llama"), 10) as run:
        with pytest.raises(ValueError, match="tokens 0 to 11 do not fit a run of 10"):
            run.read(range(11))
        with pytest.raises(ValueError, match="do not fit"):
            run.step([], 3, logits=1)
    with pytest.raises(ConfigError, match="length: must be at most the model's 512, not 513"):
        WatchedRun(load_family("llama"), 513)
