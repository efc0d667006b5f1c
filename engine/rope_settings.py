"""RoPE settings of a model configuration: replacing them, and the context they are made for."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

from headway.engine.errors import ConfigError

KEPT = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


def override(config: PreTrainedConfig, scaling: dict[str, Any]) -> None:
    """Replace the RoPE scaling of `config` in place, keeping its base frequency.

    A model with settings for each layer type takes the new ones for its full-attention layers.

    Raises:
        ConfigError: the settings are not valid, with the reason.
    """
    settings = dict(scaling)
    if "type" in settings:
        settings["rope_type"] = settings.pop("type")
    _check(settings)
    text = config.get_text_config(decoder=True)
    current = getattr(text, "rope_parameters", None)
    if not current:
        raise ConfigError(f"model.rope_scaling: a {config.model_type} model has no RoPE settings to replace")
    layer_type = "full_attention" if isinstance(current.get("full_attention"), dict) else None
    before = current[layer_type] if layer_type else current
    merged = {name: before[name] for name in KEPT if name in before} | settings
    text.rope_parameters = {**current, layer_type: merged} if layer_type else merged
    try:
        text.standardize_rope_params()
        text.validate_rope()
        if merged["rope_type"] != "default":
            ROPE_INIT_FUNCTIONS[merged["rope_type"]](text, device="cpu", layer_type=layer_type)
    except Exception as error:
        raise ConfigError(f"model.rope_scaling: {error}") from error


def context_limit(config: PreTrainedConfig) -> int | None:
    """Tokens of context that the model's positions are made for; None if it does not say."""
    text = config.get_text_config(decoder=True)
    limit: int | None = getattr(text, "max_position_embeddings", None)
    parameters = getattr(text, "rope_parameters", None) or {}
    if limit is None:
        return None
    parameters = parameters.get("full_attention") or parameters
    match parameters.get("rope_type"):
        case "dynamic":
            return int(limit * parameters["factor"])
        case "yarn":
            return max(limit, int(parameters["original_max_position_embeddings"] * parameters["factor"]))
        case _:
            return limit


def _check(settings: dict[str, Any]) -> None:
    known = sorted(RopeParameters.__annotations__)
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"model.rope_scaling.{name}: unknown key; valid keys: {', '.join(known)}")
        if name not in ("rope_type", "truncate") and not _is_positive(value):
            raise ConfigError(f"model.rope_scaling.{name} must hold positive numbers, not {value!r}")
    allowed = ["default", *ROPE_INIT_FUNCTIONS]
    if settings.get("rope_type") not in allowed:
        raise ConfigError(
            f"model.rope_scaling.rope_type is {settings.get('rope_type')!r}; allowed: {', '.join(allowed)}"
        )


def _is_positive(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_positive(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
