"""From a configuration to an engine that is ready to serve."""

from headway.engine.cache import KVCache
from headway.engine.cache_layout import cache_layout
from headway.engine.config import EngineConfig
from headway.engine.core import Engine
from headway.engine.errors import ConfigError
from headway.engine.loaded import LoadedModel
from headway.engine.loading import load
from headway.engine.low_rank import provide_bases
from headway.engine.memory_plan import plan_memory
from headway.engine.messages import ModelInfo
from headway.engine.pages import PageAllocator
from headway.engine.prefix_cache import PrefixCache, prefill_identity, root_digest
from headway.engine.profile.routed_layers import layer_routing
from headway.engine.profile.routing import head_routes
from headway.engine.profile.served import check_profiles
from headway.engine.recipes import Recipes
from headway.engine.request import Sequence
from headway.engine.runner import ModelRunner
from headway.engine.sampler import Sampler
from headway.engine.streaming_pages import StreamingPages


def build(config: EngineConfig) -> Engine:
    """Load the model, plan the memory, and put the engine together.

    Raises:
        ConfigError: the configuration cannot be served, with what to change.
        ModelRefused: the model cannot be served correctly, with the reason.
    """
    if config.scheduler.max_step_tokens < config.scheduler.max_running:
        raise ConfigError(
            f"scheduler.max_step_tokens is {config.scheduler.max_step_tokens}, but each of "
            f"scheduler.max_running = {config.scheduler.max_running} requests may need a token in one step"
        )
    loaded = load(config.model)
    room = config.scheduler.max_step_tokens - config.scheduler.max_running
    check_profiles(config.recipe, loaded)
    routes = head_routes(config.recipe.heads, loaded)
    routing = layer_routing(config.recipe.layers, loaded)
    if routing is not None:
        routes = routing.undecided
    drop = config.recipe.memory.streaming_heads == "drop"
    layout = cache_layout(routes, loaded.specs, loaded.device, drop)
    in_cache = None if routes is None else routes.moved_last(layout.sorted)
    recipes = Recipes(config.recipe, loaded.specs, config.cache.page_size, room, in_cache)
    plan = plan_memory(loaded, config, layout, recipes, routes)
    kv_cache = KVCache(
        layout.specs, plan.num_pages, plan.page_size, loaded.dtype, loaded.device, recipes.sidecars
    )
    provide_bases(loaded, kv_cache, plan.max_context, layout.orders)
    streaming_cache = streaming = None
    if routes is not None and layout.streaming:
        longest = config.scheduler.max_step_tokens
        streaming = StreamingPages(plan.streaming_pages, plan.page_size, routes, longest)
        streaming_cache = KVCache(
            layout.streaming, plan.streaming_pages + 1, plan.page_size, loaded.dtype, loaded.device
        )
        streaming_cache.poison(streaming.void)
    info = ModelInfo(
        name=config.model.served_name or config.model.name,
        max_context=plan.max_context,
        vocab_size=loaded.vocab_size,
        eos_token_ids=loaded.eos_token_ids,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        num_pages=plan.num_pages,
        page_size=plan.page_size,
        plan=str(plan),
    )
    return Engine(
        info,
        config.scheduler,
        prefix_cache(loaded, plan.num_pages, config, streaming),
        ModelRunner(loaded, kv_cache, layout.orders, streaming_cache),
        Sampler(loaded.vocab_size, loaded.eos_token_ids),
        recipes,
        routing,
    )


def prefix_cache(
    loaded: LoadedModel, num_pages: int, config: EngineConfig, streaming: StreamingPages | None = None
) -> PrefixCache:
    """The page pool, whose digests begin with all that changes this model's KV."""

    def root(sequence: Sequence) -> bytes:
        salt = sequence.submit.cache_salt.encode("utf-8", "surrogatepass")
        parts = [loaded.fingerprint, loaded.rope.rope_key(sequence.rope_length), salt]
        return root_digest(*parts, *prefill_identity(sequence))

    return PrefixCache(
        PageAllocator(num_pages), config.cache.page_size, root, config.cache.prefix_cache, streaming
    )
