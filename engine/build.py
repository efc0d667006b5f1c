"""From a configuration to an engine that is ready to serve."""

from headway.engine.cache import KVCache
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
from headway.engine.profile.routing import head_routes
from headway.engine.profile.served import check_profiles
from headway.engine.recipes import Recipes
from headway.engine.request import Sequence
from headway.engine.runner import ModelRunner
from headway.engine.sampler import Sampler


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
    recipes = Recipes(config.recipe, loaded.specs, config.cache.page_size, room, routes)
    plan = plan_memory(loaded, config, recipes.sidecars)
    kv_cache = KVCache(
        loaded.specs, plan.num_pages, plan.page_size, loaded.dtype, loaded.device, recipes.sidecars
    )
    provide_bases(loaded, kv_cache, plan.max_context)
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
        prefix_cache(loaded, plan.num_pages, config),
        ModelRunner(loaded, kv_cache),
        Sampler(loaded.vocab_size, loaded.eos_token_ids),
        recipes,
    )


def prefix_cache(loaded: LoadedModel, num_pages: int, config: EngineConfig) -> PrefixCache:
    """The page pool, whose digests begin with all that changes this model's KV."""

    def root(sequence: Sequence) -> bytes:
        salt = sequence.submit.cache_salt.encode("utf-8", "surrogatepass")
        parts = [loaded.fingerprint, loaded.rope.rope_key(sequence.rope_length), salt]
        return root_digest(*parts, *prefill_identity(sequence))

    return PrefixCache(
        PageAllocator(num_pages), config.cache.page_size, root, enabled=config.cache.prefix_cache
    )
