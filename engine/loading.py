"""Loading a Hugging Face model for the engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations import hub_kernels

from headway.engine import rope_settings
from headway.engine.config import ModelConfig
from headway.engine.errors import ConfigError, ModelRefused
from headway.engine.fingerprint import fingerprint
from headway.engine.loaded import LoadedModel
from headway.engine.needle import WEIGHTS
from headway.engine.probe import probe
from headway.engine.rope import LengthRope
from headway.engine.self_check import self_check

__all__ = ["LoadedModel", "load"]

SERVED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load(config: ModelConfig) -> LoadedModel:
    """Load a model, derive what its layers ask of attention, and check it over the paged cache.

    Raises:
        ConfigError: the configuration names a device, folder or RoPE setting that does not exist.
        ModelRefused: the model cannot be had or cannot be served correctly, with the reason.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = _device(config)
    source = model_source(config)
    with _without_hub_kernels():
        model_config = _config(config, source)
        if config.rope_scaling is not None:
            rope_settings.override(model_config, config.rope_scaling)
        dtype = _dtype(config, model_config, device)
        model = _weights(config, source, model_config, dtype).eval().requires_grad_(False)
        if model.device.type != device.type:
            model.to(device)
        limit = rope_settings.context_limit(model_config) or config.max_context
        if limit is None:
            raise ConfigError(f"{config.name} does not say how long its context is; set model.max_context")
        loaded = LoadedModel(
            model=model,
            specs=probe(model, max(limit, config.max_context or 0)),
            dtype=dtype,
            device=device,
            vocab_size=int(model_config.get_text_config(decoder=True).vocab_size),
            eos_token_ids=_eos_token_ids(model),
            max_context=limit,
            fingerprint=fingerprint(model, dtype),
            rope=LengthRope(model),
        )
        self_check(loaded)
    return loaded


def _device(config: ModelConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device is cuda, but torch sees no CUDA device; allowed here: auto, cpu")
    name = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    return torch.device(name)


def model_source(config: ModelConfig) -> str:
    """Where transformers finds the model: a folder or a hub id.

    Raises:
        ConfigError: the name is a path, but of no folder.
    """
    if config.name == "needle":
        return str(WEIGHTS)
    path = Path(config.name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or config.name.startswith((".", "~")) or config.name.count("/") > 1:
        raise ConfigError(f"model.name: there is no folder {config.name}")
    return config.name


def _config(config: ModelConfig, source: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(
            source, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:
        raise ModelRefused(f"cannot load {config.name}: {error}") from error


def _weights(
    config: ModelConfig, source: str, model_config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            config=model_config,
            revision=config.revision,
            dtype=dtype,
            attn_implementation="eager",
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelRefused(f"cannot load {config.name}: {error}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelRefused(f"{config.name} lacks {len(missing)} weights, {missing[0]} among them")
    loaded: PreTrainedModel = model
    return loaded


def _dtype(config: ModelConfig, model_config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    if config.dtype != "auto":
        chosen: torch.dtype = getattr(torch, config.dtype)
        return chosen
    stored = model_config.dtype or model_config.get_text_config(decoder=True).dtype or torch.float32
    if stored not in SERVED_DTYPES:
        stored = torch.bfloat16
    fast = device.type != "cpu" or (stored == torch.bfloat16 and _fast_bfloat16())
    return stored if fast else torch.float32


def _fast_bfloat16() -> bool:
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def _eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    ids: set[int] = set()
    for source in (model.generation_config, model.config.get_text_config(decoder=True)):
        value = getattr(source, "eos_token_id", None)
        ids.update([value] if isinstance(value, int) else value or [])
    return tuple(sorted(ids))


@contextmanager
def _without_hub_kernels() -> Iterator[None]:
    """What USE_HUB_KERNELS=NO does: nothing that is run here may be fetched from the hub."""
    before = hub_kernels._kernels_enabled
    hub_kernels._kernels_enabled = False
    try:
        yield
    finally:
        hub_kernels._kernels_enabled = before
