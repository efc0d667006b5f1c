"""Which decode and prefill methods serve one request together."""

from headway.engine.methods.decode import AnyMethod as DecodeMethod
from headway.engine.methods.prefill import AnyMethod as PrefillMethod


def why_no_routes(decode: DecodeMethod) -> str | None:
    """What keeps a decode method from serving some heads of a layer alone; begins as that of `why_not`."""
    if decode.hands_on:
        return (
            f"method: {decode.settings.method} hands what a layer has chosen to another layer, whose heads "
            "recipe.heads or recipe.layers routes otherwise; leave that out, or use another decode method"
        )
    if decode.routes_heads:
        return (
            f"method: {decode.settings.method} decides itself, in every step, which heads read sinks and "
            "window only; leave recipe.heads and recipe.layers out, or use another decode method"
        )
    return None


def why_not(decode: DecodeMethod, prefill: PrefillMethod) -> str | None:
    """What keeps the two from serving together; it begins with a key of a recipe and a colon. None: nothing.

    A decode method that watches prompts needs the weights that dense attention gives.
    """
    watching, tail = decode.settings.method, prefill.settings.dense_tail
    if prefill.settings.method == "dense":
        return None
    if decode.sees_all:
        return (
            f"prefill.method: the decode method {watching} watches the whole prompt, whose prefill must be "
            f"dense, not {prefill.settings.method}"
        )
    if decode.observes > tail:
        return (
            f"prefill.dense_tail: the decode method {watching} watches the prompt's last {decode.observes} "
            f"tokens, which must be dense: at least {decode.observes}, not {tail}"
        )
    return None
