"""Low-rank bases: the directions in which a layer's keys vary most (Loki, arXiv 2406.02542).

A PCA of the keys after their rotation, for each layer and KV head. It comes from a profile or another file
or, when none is given, from what a few runs of seeded random tokens leave in a cache: the same at every
start. They stand at positions spread over the whole context, because a direction that turns slowly shows its
variance only over long distances; Loki calibrates on a text corpus at 4,096 positions instead. On needle
random tokens do better than texts (docs/profiles.md); that they do elsewhere is an inference.

Never from the prompt at hand, as Loki's text could be read: the projected keys of a page would depend on the
request that wrote it, and the prefix cache could not hand it to another one.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from headway.engine import forward_context, latent
from headway.engine.cache import KVCache
from headway.engine.cache_layout import HeadOrder
from headway.engine.errors import ConfigError
from headway.engine.key_moments import KeyMoments, principal
from headway.engine.latent import LatentProjection
from headway.engine.layer_spec import LayerSpec
from headway.engine.loaded import LoadedModel
from headway.engine.lone_step import lone_step
from headway.engine.patch import attached
from headway.engine.profile import artefact
from headway.engine.sidecars import carries

RUNS = 16
RUN_TOKENS = 128
ORTHONORMAL = 1e-2
"""Largest deviation of a file's columns from orthonormal ones; bfloat16 keeps them to about half of it."""


def provide_bases(
    loaded: LoadedModel, cache: KVCache, max_context: int, orders: Mapping[int, HeadOrder] | None = None
) -> None:
    """Give the cache's `low_rank` sidecars their bases.

    Args:
        max_context: tokens of the longest sequence to be served.
        orders: by layer_idx, of layers whose heads lie in another order in the cache than in the model.

    Raises:
        ConfigError: a basis file is missing or does not fit the model, with what it must hold.
    """
    specs = [spec for spec in loaded.specs if carries(spec)]
    computed: dict[int, Tensor] = {}
    for sidecar in cache.sidecars.kept:
        if sidecar.kind != "low_rank":
            continue
        if sidecar.basis:
            bases = _read(Path(sidecar.basis))
        else:
            bases = computed = computed or _calibrate(loaded, cache.page_size, max_context)
        cache.sidecars.bases[sidecar] = {}
        for spec in specs:
            basis = _fitted(bases, spec, sidecar.shape(spec, cache.page_size)[2], sidecar.basis)
            order = (orders or {}).get(spec.layer_idx)
            if order is not None:
                kept = cache.pages(spec.layer_idx)[0].shape[2]
                basis = basis[order.kv_heads[:kept].cpu()]
            basis = basis.to(loaded.device, loaded.dtype).contiguous()
            cache.sidecars.bases[sidecar][spec.layer_idx] = basis


def _read(path: Path) -> dict[int, Tensor]:
    if artefact.exists(path):
        profile = artefact.load(path)
        if profile.facts.kind != "lowrank":
            raise ConfigError(f"basis: {path} is a profile of kind {profile.facts.kind}; it must be lowrank")
        tensors = {name: tensor for name, tensor in profile.tensors.items() if name.startswith("layers.")}
    else:
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"basis: cannot read {path} as safetensors: {error}") from error
    layers = [name.removeprefix("layers.") for name in tensors]
    if not all(layer.isdecimal() for layer in layers):
        raise ConfigError(f"basis: {path} must hold tensors named layers.N and nothing else")
    return {int(layer): tensor.float() for layer, tensor in zip(layers, tensors.values(), strict=True)}


def _fitted(bases: Mapping[int, Tensor], spec: LayerSpec, rank: int, source: str) -> Tensor:
    """The first `rank` directions [Hkv, key_dim, rank] of a layer."""
    where = f"basis: layers.{spec.layer_idx} of {source}"
    basis = bases.get(spec.layer_idx)
    if basis is None:
        raise ConfigError(f"{where} is missing")
    shape = (spec.num_kv_heads, spec.key_dim)
    if basis.ndim != 3 or basis.shape[:2] != shape or basis.shape[2] < rank:
        raise ConfigError(
            f"{where} must be [{shape[0]}, {shape[1]}, {rank} or more], not {list(basis.shape)}"
        )
    columns = basis[..., :rank]
    products = columns.transpose(1, 2) @ columns
    # Written so that NaN is refused, too.
    if not (products - torch.eye(rank, dtype=products.dtype)).abs().max() <= ORTHONORMAL:
        raise ConfigError(f"{where} must have orthonormal columns for each KV head")
    return columns


def _calibrate(loaded: LoadedModel, page_size: int, max_context: int) -> dict[int, Tensor]:
    """All directions [Hkv, key_dim, key_dim] of every layer with sidecars, the widest first."""
    length = min(RUN_TOKENS, max_context)
    cache = KVCache(loaded.specs, -(-length // page_size), page_size, loaded.dtype, loaded.device)
    generator = torch.Generator().manual_seed(0)
    latents = latent.projections(loaded.model)
    moments = {
        spec.layer_idx: KeyMoments(spec.num_kv_heads, spec.key_dim, loaded.device)
        for spec in loaded.specs
        if carries(spec)
    }
    with attached(loaded.model), loaded.rope.attached():
        for start in torch.linspace(0, max_context - length, RUNS).long().tolist():
            tokens = torch.randint(loaded.vocab_size, (length,), generator=generator)
            _run(loaded, cache, latents, tokens, start, max_context)
            for layer_idx, seen in moments.items():
                pages, _ = cache.pages(layer_idx)
                seen.add(pages.flatten(0, 1)[:length])
    return {layer_idx: principal(seen.covariance)[1].cpu() for layer_idx, seen in moments.items()}


def _run(
    loaded: LoadedModel, cache: KVCache, latents: Mapping[int, LatentProjection], tokens: Tensor, start: int,
    max_context: int,
) -> None:  # fmt: skip
    """Leave the keys of these tokens in the first pages, as if their positions began at `start`."""
    length, device = len(tokens), loaded.device
    step = lone_step(loaded, cache, 0, length, max_context, latents)
    with torch.inference_mode(), forward_context.entered(step):
        loaded.model(
            input_ids=tokens.to(device).unsqueeze(0),
            position_ids=torch.arange(start, start + length, device=device).unsqueeze(0),
            use_cache=False,
            logits_to_keep=1,
        )
