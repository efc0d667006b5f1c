"""A digest of everything about a loaded model that changes the keys and values it computes."""

import hashlib
import json

import torch
from transformers import PreTrainedModel

SAMPLES = 64
_VOLATILE = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}


def fingerprint(model: PreTrainedModel, dtype: torch.dtype) -> bytes:
    """Digest of configuration (RoPE settings included), revision, dtype and weights; 32 bytes.

    Of each weight it takes the sum of its raw bits and a few values: a changed weight changes the digest, at
    the cost of reading the weights once.
    """
    settings = {name: value for name, value in model.config.to_dict().items() if name not in _VOLATILE}
    revision = getattr(model.config, "_commit_hash", None)
    identity = [settings, revision, str(dtype)]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_content(tensor))
    return digest.digest()


def _content(tensor: torch.Tensor) -> bytes:
    # Quantised weights are subclasses without raw bits; their values stand for them.
    values = tensor.detach() if type(tensor.data) is torch.Tensor else tensor.detach().float()
    raw = values.flatten().contiguous().view(torch.uint8)
    words = {2: torch.int16, 4: torch.int32}.get(values.element_size(), torch.uint8)
    total = int(raw.view(words).sum(dtype=torch.int64))
    picked = raw[:: max(1, raw.numel() // SAMPLES)]
    return total.to_bytes(8, "little", signed=True) + bytes(picked.tolist())
