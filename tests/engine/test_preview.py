"""The preview against Hugging Face's own projections."""

import pytest
import torch

from headway.engine.errors import ConfigError
from headway.engine.patch import attached
from headway.engine.preview import Preview
from tests.engine.methods.driver import prompt

POOL = 6


def projections(attention):
    """The module of a layer whose output is the query before its rotation."""
    return getattr(attention, "q_norm", attention.q_proj)


@pytest.mark.parametrize(
    ("family", "layers"),
    [("llama", [0, 1]), ("llama-yarn", [0, 1]), ("qwen3", [0, 1]), ("smollm3", [0, 1]), ("gemma3", [1])],
)
def test_queries_are_the_means_of_what_the_model_projects_from_both_ends(family, layers, load_family):
    loaded, ids = load_family(family), prompt(60)
    ends = ids[:POOL] + ids[-POOL:]
    seen = {}
    hooks = [
        projections(layer.self_attn).register_forward_hook(
            lambda _, __, out, spec=spec: seen.update({spec.layer_idx: out.reshape(-1, spec.key_dim)})
        )
        for layer, spec in zip(loaded.model.model.layers, loaded.specs, strict=True)
    ]
    loaded.model(torch.tensor([ends]), use_cache=False)
    for hook in hooks:
        hook.remove()
    preview = Preview(loaded, POOL)
    assert preview.ends(ids) == tuple(ends)
    with attached(loaded.model), loaded.rope.attached():
        found = preview.queries(preview.ends(ids))
    assert sorted(found) == sorted(preview.layers) == layers
    for at in layers:
        expected = seen[at].mean(0)
        # A rotation that also scales, as YaRN's, scales the query.
        scale = found[at].norm() / expected.norm()
        torch.testing.assert_close(found[at], expected * scale, atol=1e-4, rtol=1e-4)
        assert 0.99 < scale < 1.3


def test_only_the_ends_count(load_family):
    loaded = load_family("llama")
    preview, one, other = Preview(loaded, POOL), prompt(60), prompt(90, seed=1)
    other[:POOL], other[-POOL:] = one[:POOL], one[-POOL:]
    assert preview.ends(one) == preview.ends(other)
    with attached(loaded.model), loaded.rope.attached():
        first, again = preview.queries(preview.ends(one)), preview.queries(preview.ends(one))
        changed = preview.queries(preview.ends([*one[:-1], (one[-1] + 1) % 128]))
    assert all(torch.equal(first[at], again[at]) for at in first)
    assert not any(torch.equal(first[at], changed[at]) for at in first)


@pytest.mark.parametrize(
    ("family", "told"),
    [("deepseek-v3", "no layers with KV heads"), ("llama-dynamic", r"layers \[0, 1\] rotate")],
)
def test_a_model_whose_queries_cannot_be_had_is_refused(family, told, load_family):
    with pytest.raises(ConfigError, match=told):
        Preview(load_family(family), POOL)
