"""RoPE settings of a model configuration: replacing them, and the context they are made for."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from headway.engine.errors import ConfigError

_KEPT = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


def override(config: PreTrainedConfig, scaling: dict[str, Any]) -> None:
    """Replace the RoPE scaling of `config`, keeping its base frequency.

    A model with settings for each layer type takes the new ones for its full-attention layers.

    Raises:
        ConfigError: the settings are not valid, with the reason.
    """
    text = config.get_text_config(decoder=True)
    rope_type = scaling.get("rope_type", scaling.get("type"))
    allowed = ["default", *ROPE_INIT_FUNCTIONS]
    if rope_type not in allowed:
        raise ConfigError(f"model.rope_scaling.rope_type must be one of {', '.join(allowed)}, not {rope_type!r}")
    current = getattr(text, "rope_parameters", None)
    if not current:
        raise ConfigError(f"model.rope_scaling: a {config.model_type} model has no RoPE settings to replace")
    settings = {name: value for name, value in scaling.items() if name != "type"} | {"rope_type": rope_type}
    layer_type = "full_attention" if isinstance(current.get("full_attention"), dict) else None
    before = current[layer_type] if layer_type else current
    merged = {name: before[name] for name in _KEPT if name in before} | settings
    text.rope_parameters = {**current, layer_type: merged} if layer_type else merged
    try:
        text.standardize_rope_params()
        text.validate_rope()
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"model.rope_scaling: {error}") from error


def context_limit(config: PreTrainedConfig) -> int | None:
    """Tokens of context that the model's positions are made for; None if it does not say."""
    text = config.get_text_config(decoder=True)
    limit: int | None = getattr(text, "max_position_embeddings", None)
    parameters = getattr(text, "rope_parameters", None) or {}
    if limit is None:
        return None
    match parameters.get("rope_type"):
        case "dynamic":
            return int(limit * parameters["factor"])
        case "yarn":
            return max(limit, int(parameters["original_max_position_embeddings"] * parameters["factor"]))
        case _:
            return limit
