"""Fields that may hold millions of items, checked by hand: pydantic would report each wrong one."""

from typing import Any

PromptInput = list[str | list[int]]

_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "minItems": 1}
PROMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        _IDS,
        {"type": "array", "items": _IDS, "minItems": 1},
    ]
}


def check_token_ids(value: Any) -> list[int]:
    """A list of token ids; the vocabulary's size is the engine's to check.

    Raises:
        ValueError: something else, or an id below 0.
    """
    if not isinstance(value, list) or set(map(type, value)) - {int}:
        raise ValueError("must be a list of token ids")
    if value and not 0 <= min(value) <= max(value) < 2**31:
        raise ValueError("token ids must be 0 or more, and below 2^31")
    return value


def check_prompt(value: Any) -> PromptInput:
    """One or several prompts, as a list.

    Raises:
        ValueError: no prompt, an empty one, or anything but texts and token ids.
    """
    if isinstance(value, list) and value and isinstance(value[0], int):
        return [check_token_ids(value)]
    prompts = value if isinstance(value, list) else [value]
    if not prompts or not all(prompts):
        raise ValueError("a prompt must not be empty")
    kinds = set(map(type, prompts))
    if kinds == {str}:
        return list(prompts)
    if kinds == {list}:
        return [check_token_ids(prompt) for prompt in prompts]
    raise ValueError("must be a string, a list of strings, a list of token ids, or a list of such lists")


def check_logit_bias(value: Any) -> dict[int, float]:
    """Biases by token id.

    Raises:
        ValueError: a key that is no token id, or a bias outside -100…100.
    """
    if not isinstance(value, dict):
        raise ValueError("must be an object of token ids and biases")
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise ValueError(f"{key[:80]!r} is no token id")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise ValueError("biases must be numbers in -100…100")
    return {int(key): float(bias) for key, bias in value.items()}
