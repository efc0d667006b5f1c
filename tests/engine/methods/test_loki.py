"""loki: the scores, the basis and where it comes from, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file

from headway.engine.build import build
from headway.engine.cache import KVCache
from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.errors import ConfigError, RequestError
from headway.engine.low_rank import provide_bases
from headway.engine.methods.decode.loki import Method, Settings
from headway.engine.offers import Offers
from headway.engine.recipe import RecipeConfig
from tests.engine.hash_runner import answers, finish, make_submit
from tests.engine.models.families import save

from .driver import PAGE_SIZE, Job, drive, make, prompt, settings_of, watch
from .layers import DIM, GROUP, HEADS, KV_HEADS, Layers, always, best, randn, spec, units

SINKS, WINDOW, BUDGET = 3, 10, 40
LENGTH = 101


def method(**wanted):
    base = {"dense_below": 0, "sink_size": SINKS, "window_size": WINDOW, "budget": BUDGET}
    return Method(Settings(**base | wanted))


def directions(rank: int, seed: int = 0):
    return torch.linalg.qr(randn(KV_HEADS, DIM, DIM, seed=seed)).Q[..., :rank].contiguous()


def layers_of(chosen: Method, keys, basis):
    [sidecar] = chosen.sidecars()
    return Layers(chosen, [keys], chunk=7, bases={sidecar: {0: basis}})


def exact(keys, query, project=None) -> list[list[int]]:
    """Top tokens of each KV head by the maximum over its query heads, in fp64."""
    lists = []
    for head in range(KV_HEADS):
        directions = torch.eye(DIM) if project is None else project[head]
        rows = keys[0, :, head].double() @ directions.double()
        scores = query[head * GROUP : (head + 1) * GROUP].double() @ directions.double() @ rows.T
        lists.append(best(scores.amax(0), BUDGET, always(LENGTH, SINKS, WINDOW)))
    return lists


def test_in_all_directions_it_is_the_exact_top_k():
    keys, query = randn(1, LENGTH, KV_HEADS, DIM), randn(HEADS, DIM, seed=1)
    layers = layers_of(method(rank=DIM), keys, directions(DIM))
    (selection,) = layers.step(query[None, None])
    assert units(selection) == exact(keys, query)


def test_in_some_directions_it_ranks_by_the_projected_products():
    keys, query, basis = randn(1, LENGTH, KV_HEADS, DIM), randn(HEADS, DIM, seed=1), directions(5)
    (selection,) = layers_of(method(rank=5), keys, basis).step(query[None, None])
    assert units(selection) == exact(keys, query, basis)
    assert units(selection) != exact(keys, query)


def test_recall_rises_with_the_rank():
    """On average over queries: keys whose directions matter less and less, as PCA orders them."""
    basis = directions(DIM)
    keys = torch.einsum("lthd,hed->lthe", randn(1, LENGTH, KV_HEADS, DIM) * 0.7 ** torch.arange(DIM), basis)
    recalls = []
    for rank in (1, 3, 6, DIM):
        layers = layers_of(method(rank=rank), keys, basis[..., :rank].contiguous())
        found = total = 0
        for seed in range(12):
            query = randn(HEADS, DIM, seed=seed)
            (selection,) = layers.step(query[None, None])
            for chosen, best_ones in zip(units(selection), exact(keys, query), strict=True):
                found += len(set(chosen) & set(best_ones))
                total += len(best_ones)
        recalls.append(found / total)
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.9 * recalls[1]
    assert recalls[-1] == 1


def bases_of(loaded, **settings) -> dict[int, torch.Tensor]:
    [sidecar] = method(**settings).sidecars()
    cache = KVCache(loaded.specs, 40, PAGE_SIZE, loaded.dtype, loaded.device, [sidecar])
    provide_bases(loaded, cache, 320)
    return cache.sidecars.bases[sidecar]


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "gpt-oss", "deepseek-v3", "phi3-longrope"])
def test_the_computed_basis_is_orthonormal_and_always_the_same(load_family, family):
    loaded = load_family(family)
    bases, again = bases_of(loaded, rank=4), bases_of(loaded, rank=4)
    assert sorted(bases) == [each.layer_idx for each in loaded.specs if each.window is None]
    for layer_idx, basis in bases.items():
        facts = loaded.specs[layer_idx]
        assert basis.shape == (facts.num_kv_heads, facts.key_dim, 4)
        torch.testing.assert_close(basis.mT @ basis, torch.eye(4).expand(facts.num_kv_heads, 4, 4))
        assert torch.equal(basis, again[layer_idx])


def test_the_default_rank_is_a_quarter_of_the_key():
    assert method().sidecars() != method(rank=4).sidecars()
    [sidecar] = method().sidecars()
    assert sidecar.shape(spec(), PAGE_SIZE) == (PAGE_SIZE, KV_HEADS, DIM // 4)


def test_the_computed_basis_holds_more_of_other_keys_than_chance(gqa):
    """Keys of tokens that the calibration did not see; random weights make for keys of hardly any shape."""
    bases = bases_of(gqa, rank=4)
    seen: dict[int, torch.Tensor] = {}

    def look(_selection, layer, _query):
        pages = torch.as_tensor(layer.plan.host_tables[0])
        rows = layer.key_cache[pages].flatten(0, 1)[: layer.plan.host_kv_lens[0]]
        seen[layer.spec.layer_idx] = (rows - rows.mean(0)).transpose(0, 1)

    drive(gqa, [Job(prompt(117), watch(make("tokenselect", gqa), look))], 2)
    for layer_idx, rows in seen.items():
        kept = (rows @ bases[layer_idx]).square().sum((1, 2)) / rows.square().sum((1, 2))
        assert (kept > 1.15 * 4 / rows.shape[-1]).all()


def test_a_basis_file_serves_with_its_first_directions(gqa, tmp_path):
    whole = {each.layer_idx: directions(DIM, each.layer_idx) for each in gqa.specs}
    path = str(tmp_path / "basis.safetensors")
    save_file({f"layers.{layer_idx}": basis for layer_idx, basis in whole.items()}, path)
    for layer_idx, basis in bases_of(gqa, rank=6, basis=path).items():
        assert torch.equal(basis, whole[layer_idx][..., :6])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (None, "cannot read"),
        ({"layers.0": directions(4)}, "layers.1 .* is missing"),
        ({"layers.0": directions(4), "layer.1": directions(4)}, "named layers.N"),
        ({"layers.0": directions(3), "layers.1": directions(4)}, r"layers.0 .* \[2, 16, 4 or more\]"),
        ({"layers.0": directions(4)[:1], "layers.1": directions(4)}, r"not \[1, 16, 4\]"),
        ({"layers.0": directions(4), "layers.1": 2 * directions(4)}, "layers.1 .* orthonormal"),
        ({"layers.0": directions(4), "layers.1": directions(4) * torch.nan}, "orthonormal"),
    ],
)
def test_a_basis_file_that_does_not_fit_is_refused(gqa, tmp_path, tensors, message):
    path = tmp_path / "basis.safetensors"
    if tensors is not None:
        save_file(tensors, path)
    with pytest.raises(ConfigError, match=message):
        bases_of(gqa, rank=4, basis=str(path))


def test_a_file_that_is_no_safetensors_is_refused(gqa, tmp_path):
    path = tmp_path / "basis.safetensors"
    path.write_text("nothing of the kind")
    with pytest.raises(ConfigError, match="safetensors"):
        bases_of(gqa, basis=str(path))


def test_a_rank_beyond_the_key_is_refused(gqa):
    with pytest.raises(ConfigError, match="at most the key's size 16, not 17"):
        make("loki", gqa, rank=17)


def test_a_request_can_neither_change_the_rank_nor_name_a_file():
    offers = Offers(RecipeConfig(decode={"method": "loki", "rank": 4}))
    assert offers.settings({"rank": 4, "budget": 512}, None)[0].budget == 512
    with pytest.raises(RequestError, match="low_rank"):
        offers.settings({"rank": 8}, None)
    with pytest.raises(RequestError, match="basis"):
        offers.settings({"basis": "/etc/passwd"}, None)


def test_a_built_engine_has_its_basis(tmp_path):
    config = {
        "model": {"name": str(save("llama", tmp_path)), "threads": 1},
        "cache": {"memory_gib": 0.01, "page_size": PAGE_SIZE},
        "scheduler": {"max_step_tokens": 64, "max_running": 8},
        "recipe": {"decode": settings_of("loki")},
    }
    engine = build(parse(EngineConfig, config))
    try:
        assert "sidecars" in engine.info.plan
        engine.submit(make_submit("asked", prompt(90), 5))
        (tokens,) = answers(finish(engine)).values()
        assert len(tokens) == 5
    finally:
        engine.close()
