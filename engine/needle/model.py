"""Qwen3 in plain PyTorch for training, parameter names as in transformers; takes any positions."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK, SINK = 128, 16

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention over rotated queries [B, heads, T, d] and keys, and values [B, KV heads, T, d]."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the names of the Hugging Face configuration."""

    vocab_size: int
    hidden_size: int = 192
    intermediate_size: int = 320
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 1e10
    rms_norm_eps: float = 1e-6

    def config(self) -> dict[str, object]:
        """`config.json` for transformers."""
        sizes = asdict(self)
        theta = sizes.pop("rope_theta")
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **sizes,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "rope_theta": theta,
            "max_position_embeddings": 131072,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "use_cache": True,
            "dtype": "float32",
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
        }


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> same."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Causal grouped-query attention with QK-norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = (
            shape.num_attention_heads,
            shape.num_key_value_heads,
            shape.head_dim,
        )
        self.q_proj = nn.Linear(shape.hidden_size, self.heads * self.size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, self.kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, self.kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(self.heads * self.size, shape.hidden_size, bias=False)
        self.q_norm = Norm(self.size, shape.rms_norm_eps)
        self.k_norm = Norm(self.size, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [B, T, hidden]; cos, sin [B, 1, T, size] -> [B, T, hidden]."""
        out = attend(self.queries(x, cos, sin), *self.keys_values(x, cos, sin))
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return projected

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotated queries [B, heads, T, size]; arguments as in `forward`."""
        q = self.q_proj(x).view(*x.shape[:2], self.heads, self.size)
        return rotate(self.q_norm(q).transpose(1, 2), cos, sin)

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values [B, KV heads, T, size]; arguments as in `forward`."""
        k, v = (p(x).view(*x.shape[:2], self.kv_heads, self.size) for p in (self.k_proj, self.v_proj))
        return rotate(self.k_norm(k).transpose(1, 2), cos, sin), v.transpose(1, 2)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention; q [B, heads, T, d], k and v [B, KV heads, T, d] -> like q."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves convention of Llama; x [B, heads, T, size]."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def local(q: Tensor, k: Tensor, v: Tensor, split: int) -> Tensor:
    """The first `split` positions attend to the sink, their chunk and the one before; [B, h, split, d]."""
    b, h, _, d = q.shape
    n = split // CHUNK

    def spans(x: Tensor) -> Tensor:
        own = x[:, :, :split].reshape(b, -1, n, CHUNK, d).transpose(1, 2)
        before = torch.cat((torch.zeros_like(own[:, :1]), own[:, :-1]), dim=1)
        sink = x[:, None, :, :SINK].expand(-1, n, -1, -1, -1)
        return torch.cat((sink, before, own), dim=3).flatten(0, 1)

    chunk = torch.arange(n)[:, None]
    key = torch.cat((torch.full((SINK,), -1), torch.arange(2 * CHUNK)))
    seen = torch.where(key < 0, chunk > 1, (key >= CHUNK) | (chunk > 0))[:, None, None]
    mask = seen & (key[None, :] <= CHUNK + torch.arange(CHUNK)[:, None])
    chunks = q[:, :, :split].reshape(b, h, n, CHUNK, d).transpose(1, 2).flatten(0, 1)
    out = F.scaled_dot_product_attention(chunks, spans(k), spans(v), mask.repeat(b, 1, 1, 1), enable_gqa=True)
    return out.view(b, n, h, CHUNK, d).transpose(1, 2).reshape(b, h, split, d)


def windowed(split: int) -> Attend:
    """Attention in which the positions before `split` see only their surroundings, those behind it all."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        t = q.shape[2]
        mask = torch.arange(t) <= torch.arange(split, t)[:, None]
        tail = F.scaled_dot_product_attention(q[:, :, split:], k, v, mask, enable_gqa=True)
        return torch.cat((local(q, k, v, split), tail), dim=2)

    return attend


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> same."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [B, T, hidden] -> same."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Needle(nn.Module):
    """The decoder; its head is the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
        self.register_buffer("inv_freq", shape.rope_theta**-exponents, persistent=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [B, T] -> cos, sin [B, 1, T, head_dim]."""
        angles = positions[..., None].float() * self.inv_freq  # type: ignore[operator]
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos(), angles.sin()

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids, positions [B, T] -> hidden states after the last norm [B, T, hidden]."""
        return self.run(ids, positions, [dense] * len(self.layers))

    def compile_parts(self) -> None:
        """Compiles what a forward with attentions of its own calls (`run`), and the plain forward."""
        self.compile(dynamic=True)
        for layer in cast(list[Layer], self.layers):
            layer.mlp.compile(dynamic=True)
            for name in ("queries", "keys_values"):
                setattr(layer.self_attn, name, torch.compile(getattr(layer.self_attn, name), dynamic=True))

    def run(self, ids: Tensor, positions: Tensor, attends: list[Attend]) -> Tensor:
        """The decoder with an attention of its own in every layer; shapes as in `forward`."""
        cos, sin = self.rope(positions)
        x = self.embed_tokens(ids)
        for layer, attend in zip(self.layers, attends, strict=True):
            x = layer(x, cos, sin, attend)
        out: Tensor = self.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocab]."""
        return hidden @ self.embed_tokens.weight.T
