"""RoPE whose frequencies depend on the sequence's length, fixed for each sequence at its admission.

Hugging Face chooses `dynamic` and `longrope` frequencies from the largest position in the whole batch, so a
sequence would change with its neighbours, and cached keys with every step. Here each token is rotated with
the frequencies of the length that its sequence was admitted at.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from headway.engine import forward_context


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one set of frequencies depends on the length: constant up to `threshold`, then (longrope) another
    constant or (dynamic) different at each length."""

    longrope: bool
    threshold: int

    def key(self, length: int) -> int:
        if self.longrope:
            return int(length > self.threshold)
        return max(length, self.threshold)


class LengthRope:
    """The length-dependent rotary embeddings of one model.

    Attributes:
        rules: one for each length-dependent set of frequencies; empty: RoPE does not depend on the length.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        rules: list[_Rule] = []
        self._modules: list[torch.nn.Module] = []
        for module in model.modules():
            found = _rules_of(module)
            rules.extend(found)
            if found:
                self._modules.append(module)
        self.rules = tuple(rules)

    def rope_key(self, length: int) -> bytes:
        """Equal for two lengths exactly when every frequency is; part of a prefix-cache key."""
        return b"".join(rule.key(length).to_bytes(8, "little") for rule in self.rules)

    def groups(self, lengths: list[int], rows: list[range]) -> list[tuple[int, list[int]]]:
        """Group sequences (`rows` of each, admitted at `lengths`) by their frequencies: (length, rows)."""
        if not self.rules:
            return []
        groups: dict[bytes, tuple[int, list[int]]] = {}
        for length, own_rows in zip(lengths, rows, strict=True):
            key = self.rope_key(length)
            longest, members = groups.get(key, (0, []))
            groups[key] = (max(longest, length), [*members, *own_rows])
        return list(groups.values())

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Rotate by the forward context's `rope_groups`; undone on leaving."""
        with ExitStack() as stack:
            for module in self._modules:
                stack.enter_context(_grouped(module))
            yield


def is_rotary(module: torch.nn.Module) -> bool:
    """Whether `module` computes rotary embeddings."""
    return any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))


def depends_on_length(module: torch.nn.Module) -> bool:
    """Whether the frequencies of a rotary embedding depend on the sequence's length."""
    return bool(_rules_of(module))


def _rules_of(module: torch.nn.Module) -> list[_Rule]:
    if not is_rotary(module):
        return []
    types = getattr(module, "rope_type", None)
    by_layer_type = types if isinstance(types, dict) else {None: types}
    config: Any = getattr(module, "config", None)
    rules = []
    for layer_type, rope_type in by_layer_type.items():
        if not isinstance(rope_type, str):
            continue
        if rope_type == "longrope":
            parameters = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
            rules.append(_Rule(longrope=True, threshold=int(parameters["original_max_position_embeddings"])))
        elif "dynamic" in rope_type:
            rules.append(_Rule(longrope=False, threshold=int(config.max_position_embeddings)))
    return rules


@contextmanager
def _grouped(module: torch.nn.Module) -> Iterator[None]:
    attributes = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers(recurse=False)}
    original: Callable[..., Any] = module.forward

    def forward(x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        context = forward_context.current()
        if context is None or not context.rope_groups:
            return original(x, position_ids, *args, **kwargs)
        parts = []
        for length, rows in context.rope_groups:
            # The model looks at the largest position: one more row, at the last position of that length,
            # makes its own code choose what it would choose for the whole sequence.
            positions = torch.cat((position_ids[:, rows], position_ids.new_full((1, 1), length - 1)), dim=1)
            _forget_length(module)
            parts.append((rows, original(x, positions, *args, **kwargs)))
        return _scatter(parts, position_ids.shape[1])

    try:
        module.forward = forward
        yield
    finally:
        for name in [name for name in vars(module) if not name.startswith("_")]:
            delattr(module, name)
        vars(module).update(attributes)
        for name, buffer in buffers.items():
            module._buffers[name] = buffer


def _forget_length(module: torch.nn.Module) -> None:
    for name in list(vars(module)):
        if name.endswith("max_seq_len_cached"):
            setattr(module, name, 0)


def _scatter(parts: list[tuple[torch.Tensor, Any]], length: int) -> Any:
    first = parts[0][1]
    if isinstance(first, tuple):
        columns = [[(rows, output[i]) for rows, output in parts] for i in range(len(first))]
        return tuple(_scatter(column, length) for column in columns)
    merged = first.new_empty(1, length, *first.shape[2:])
    for rows, output in parts:
        merged[:, rows] = output[:, :-1]
    return merged
