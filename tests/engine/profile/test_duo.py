"""duo: the two streams against Hugging Face's own attention, the training, and heads routed by its scores."""

from pathlib import Path

import pytest
import torch

from headway.engine.config import ModelConfig
from headway.engine.errors import ConfigError
from headway.engine.loading import load
from headway.engine.profile import artefact, duo
from headway.engine.profile.artefact import made
from headway.engine.profile.haystacks import Haystack, Question
from headway.engine.profile.lessons import lesson
from headway.engine.profile.pictures import png
from headway.engine.profile.progress import Silent
from headway.engine.profile.routing import head_routes, streaming_heads
from headway.engine.profile.two_streams import Streaming, two_streams
from headway.engine.recipe import HeadsConfig
from tests.engine.methods.layers import spec

from .readable import readable

NEEDLE = Path(__file__).parents[3] / "configs" / "profiles" / "needle" / "duo"
SHAPE = Streaming(sink_size=3, window_size=10, tile=16)
LENGTH = 61
SMALL = duo.Settings(
    steps=4, shortest=160, longest=240, lengths=3, passkeys=2, sink_size=4, window_size=32, tile=16
)


def ids_of(loaded, seed=0):
    return torch.randint(loaded.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(seed)).tolist()


def gates_of(loaded, value):
    return {s.layer_idx: torch.full((s.num_kv_heads,), value) for s in loaded.specs if s.window is None}


def plain(loaded, ids, mask=None):
    """Last hidden states of the model as it comes; mask: bool [T, T]."""
    masked = {} if mask is None else {"attention_mask": torch.where(mask, 0.0, -torch.inf)[None, None]}
    with torch.no_grad():
        return loaded.model.base_model(torch.tensor([ids]), use_cache=False, **masked).last_hidden_state[0]


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "gemma2", "gpt-oss"])
def test_open_gates_and_windows_that_hold_everything_are_the_model(family, load_family):
    loaded = load_family(family)
    ids, rows = ids_of(loaded), torch.arange(LENGTH)
    expected = plain(loaded, ids)
    for shape, value in ((SHAPE, 1.0), (Streaming(3, 80, 16), 0.0), (Streaming(80, 1, 16), 0.3)):
        with (
            two_streams(loaded, shape, recompute=False) as streams,
            streams.hidden(ids, gates_of(loaded, value), rows) as (full, gated),
        ):
            torch.testing.assert_close(full, expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(gated, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(plain(loaded, ids), expected)


def test_closed_gates_hide_all_but_sinks_and_window(load_family):
    loaded = load_family("llama")
    ids, rows = ids_of(loaded), torch.tensor([5, 16, 40, LENGTH - 1])
    row, place = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    mask = (place <= row) & ((place < 3) | (place >= row // 16 * 16 - 10))
    expected = plain(loaded, ids)[rows], plain(loaded, ids, mask)[rows]
    assert not torch.allclose(*expected, atol=1e-2)
    with (
        two_streams(loaded, SHAPE, recompute=False) as streams,
        streams.hidden(ids, gates_of(loaded, 0.0), rows) as found,
    ):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_the_slopes_of_the_distance(recompute, load_family):
    loaded = load_family("llama")
    ids, rows = ids_of(loaded), torch.arange(40, LENGTH)
    flat = torch.tensor([0.7, 0.2, 0.9, 0.4], requires_grad=True)

    def distance(flat):
        gates = dict(enumerate(flat.split(2)))
        with streams.hidden(ids, gates, rows) as (full, gated):
            loss = (full - gated).square().mean()
            if flat.requires_grad:
                loss.backward()
            return loss.item()

    calls = []
    hook = loaded.model.model.layers[1].self_attn.register_forward_hook(lambda *_: calls.append(1))
    with two_streams(loaded, SHAPE, recompute) as streams:
        distance(flat)
        hook.remove()
        assert len(calls) == 2 + recompute
        for head, slope in enumerate(flat.grad.tolist()):
            step = torch.zeros(4)
            step[head] = 0.02
            rise = distance(flat.detach() + step) - distance(flat.detach() - step)
            assert slope == pytest.approx(rise / 0.04, rel=0.03, abs=1e-4)
    assert not any("forward" in vars(module) for module in loaded.model.modules())


class Stops(Silent):
    """Breaks off after some steps; counts them."""

    def __init__(self, checkpoint, after=100):
        super().__init__(checkpoint)
        self.left, self.steps = after, 0

    def advance(self, steps=1):
        self.steps += steps
        self.left -= steps
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return readable("llama", tmp_path_factory.mktemp("readable"))


def test_what_was_broken_off_goes_on_as_if_it_had_not_been(model, tmp_path, monkeypatch):
    monkeypatch.setattr(duo, "CHECKPOINT_STEPS", 2)
    whole = duo.run(model, SMALL, Silent())
    path = tmp_path / "duo.part"
    with pytest.raises(KeyboardInterrupt):
        duo.run(model, SMALL, Stops(path, after=3))
    rest = Stops(path)
    resumed = duo.run(model, SMALL, rest)
    assert rest.steps == SMALL.steps
    assert torch.equal(resumed.tensors["kv_heads"], whole.tensors["kv_heads"])
    assert resumed.facts == whole.facts
    other = duo.run(model, SMALL.model_copy(update={"seed": 1}), Silent(path))
    assert not torch.equal(other.tensors["kv_heads"], whole.tensors["kv_heads"])
    scores = whole.tensors["kv_heads"]
    assert scores.shape == (2, 2)
    assert ((scores >= 0) & (scores < 1)).all()
    assert png(duo.picture(whole)).startswith(b"\x89PNG")


def test_without_a_distance_all_gates_close(model):
    """A window that holds everything: only the penalty is left."""
    settings = SMALL.model_copy(update={"steps": 12, "window_size": 256, "learning_rate": 0.2})
    assert duo.run(model, settings, Silent()).tensors["kv_heads"].max() == 0


def test_layers_with_a_window_have_no_gate(tmp_path):
    scores = duo.run(readable("gemma2", tmp_path), SMALL, Silent()).tensors["kv_heads"]
    assert scores.isnan().all(1).tolist() == [True, False]


def test_a_lesson_asks_one_question_after_the_other():
    text = Haystack([1, 2, 3, 4], [Question([5], [2], range(1, 2)), Question([6], [3, 4], range(2, 4))], (9,))
    assert lesson(text, 100) == ([1, 2, 3, 4, 5, 2, 9, 6, 3, 4], [4, 7, 8])
    assert lesson(text, 9) == ([1, 2, 3, 4, 5, 2], [4])


def test_texts_below_what_streaming_reads_are_refused():
    with pytest.raises(ValueError, match="shortest must lie above 448"):
        duo.Settings(shortest=448)


def profile(loaded, path, scores, kind="duo", name="kv_heads"):
    found = made(loaded, kind, {name: scores}, settings=SMALL, seeds=(0,), length=100)
    artefact.save(path, found)
    return str(path)


def test_the_lowest_scores_stream(load_family, tmp_path):
    loaded = load_family("llama")
    scores = torch.tensor([[0.4, 0.9], [0.1, 0.8]])
    path = profile(loaded, tmp_path / "duo", scores)
    found = [head_routes(HeadsConfig(profile=path, sparsity=s), loaded) for s in (0.0, 0.25, 0.5, 1.0)]
    assert found[0] is None
    streaming = [routes.identity["streaming"] for routes in found[1:]]
    assert streaming == [{1: [0]}, {0: [0], 1: [0]}, {0: [0, 1], 1: [0, 1]}]
    assert head_routes(None, loaded) is None


def test_equal_scores_stream_wherever_they_stand():
    specs = [spec(layer, num_heads=8, num_kv_heads=8) for layer in range(8)]
    specs.append(spec(8, num_heads=8, num_kv_heads=8, window=64))
    scores = torch.zeros(9, 8)
    scores[8] = torch.nan
    streaming = streaming_heads(scores, specs, 0.5)
    assert sum(map(len, streaming.values())) == 32
    assert streaming == streaming_heads(scores, specs, 0.5)
    assert len(streaming) > 6
    assert 8 not in streaming


def test_needles_own_profile_fits_needle_and_keeps_the_layer_that_retrieves():
    routes = head_routes(HeadsConfig(profile=str(NEEDLE), sparsity=0.75), load(ModelConfig(threads=1)))
    streaming = routes.identity["streaming"]
    assert sum(map(len, streaming.values())) == 9
    assert 2 not in streaming


def test_a_profile_that_does_not_fit_is_refused(load_family, tmp_path):
    loaded, other = load_family("llama"), load_family("gpt-neox")
    scores = torch.rand(2, 2)
    fits = profile(loaded, tmp_path / "duo", scores)
    cases = [
        (other, fits, "duo profile of"),
        (loaded, str(tmp_path / "nothing"), "cannot read the profile"),
        (loaded, profile(loaded, tmp_path / "keys", scores, "lowrank", "layers.0"), "does not score heads"),
        (loaded, profile(loaded, tmp_path / "small", scores[:1]), "KV head 0 of layer 1 has no score"),
        (loaded, profile(loaded, tmp_path / "nan", scores * torch.nan), "KV head 0 of layer 0 has no score"),
    ]
    for model, path, told in cases:
        with pytest.raises(ConfigError, match=rf"^recipe\.heads\.profile: .*{told}"):
            head_routes(HeadsConfig(profile=path), model)
