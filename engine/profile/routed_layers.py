"""From a `router` profile to what routes the layers of requests."""

import logging
from pathlib import Path

from headway.engine.errors import ConfigError
from headway.engine.layer_router import LayerRouter
from headway.engine.layer_routing import LayerRouting
from headway.engine.loaded import LoadedModel
from headway.engine.preview import Preview
from headway.engine.profile import artefact
from headway.engine.profile.artefact import Artefact
from headway.engine.recipe import LayersConfig

logger = logging.getLogger(__name__)


def layer_routing(config: LayersConfig | None, loaded: LoadedModel) -> LayerRouting | None:
    """The routing that a recipe asks for; None: none.

    Raises:
        ConfigError: the profile cannot be read, is of another model or kind, or damaged.
    """
    if config is None:
        return None
    try:
        profile = artefact.load(Path(config.router))
        profile.check(loaded)
        preview, router = _parts(profile, loaded)
    except ConfigError as error:
        raise ConfigError(f"recipe.layers.router: {error}") from error
    trained = profile.facts.settings.get("window_size")
    if isinstance(trained, int) and config.window_size < trained:
        logger.warning(
            "recipe.layers.window_size is %d, but the router %s was trained with %d: layers that it takes "
            "for sparse may need the window that they had then",
            config.window_size,
            config.router,
            trained,
        )
    return LayerRouting(loaded.specs, preview, router, config.sink_size, config.window_size)


def _parts(profile: Artefact, loaded: LoadedModel) -> tuple[Preview, LayerRouter]:
    kind, pool_size = profile.facts.kind, profile.facts.settings.get("pool_size")
    if kind != "router" or not isinstance(pool_size, int):
        raise ConfigError(f"a {kind} profile routes no layers request by request; a router profile does")
    preview = Preview(loaded, pool_size)
    router = LayerRouter({idx: spec.key_dim for idx, spec in preview.layers.items()})
    try:
        router.load_state_dict({name: profile.tensors[name] for name in router.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ConfigError(f"the profile is damaged: {error}") from error
    return preview, router.to(loaded.device).requires_grad_(False)
