"""EngineConfig: everything the engine is told, from YAML, checked at start."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from headway.engine.config_section import Positive, Section
from headway.engine.recipe import RecipeConfig


class ModelConfig(Section):
    """Which model, and how it is loaded."""

    name: str = Field("needle", description="`needle` (embedded), a local folder, or a Hugging Face id.")
    served_name: str | None = Field(None, description="The name in /v1/models; default: `name`.")
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit).")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: the checkpoint's, but float32 on a CPU without fast bfloat16."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_context: Positive | None = Field(
        None, description="Longest prompt + answer, in tokens; default: the model's own limit."
    )
    rope_scaling: dict[str, Any] | None = Field(
        None, description="Replaces the model's rope_scaling (for example a YaRN profile)."
    )
    trust_remote_code: bool = Field(False, description="Run Python code shipped with the model.")
    threads: Positive | None = Field(None, description="CPU threads of the engine; default: all cores.")


class CacheConfig(Section):
    """The paged KV cache."""

    page_size: Positive = Field(64, description="Tokens a page; a power of two.")
    memory_gib: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Memory for KV pages; default: what is left after weights and activations."
    )
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.85, description="Share of the device's free memory to use when memory_gib is not given."
    )
    prefix_cache: bool = Field(True, description="Keep finished pages and reuse them for equal prefixes.")

    @field_validator("page_size")
    @classmethod
    def _is_power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("must be a power of two")
        return value


class SchedulerConfig(Section):
    """What runs next, and how much may wait."""

    max_step_tokens: Positive = Field(2048, description="Tokens a step: decodes first, then prefill chunks.")
    max_running: Positive = Field(64, description="Requests that may hold pages at once.")
    max_partial_prefills: Positive = Field(4, description="Prompts being prefilled side by side.")
    max_queued_requests: Positive = Field(256, description="Waiting requests before the server answers 429.")
    max_queued_tokens: Positive = Field(8_388_608, description="Waiting prompt tokens before a 429.")
    ageing_tokens_per_second: Annotated[float, Field(ge=0)] = Field(
        2048.0, description="How fast a waiting prompt gains on shorter ones, in uncached tokens a second."
    )


class LimitsConfig(Section):
    """Bounds on what one request may ask for."""

    max_n: Positive = 16
    max_logprobs: Annotated[int, Field(ge=0)] = 20
    max_prompt_logprobs: Annotated[int, Field(ge=0)] = Field(
        1_000_000, description="Prompt tokens times n times (logprobs + 1) of an echoed prompt."
    )
    max_stop_strings: Positive = 16
    max_logit_bias: Positive = 1024


class EngineConfig(Section):
    """The engine's whole configuration; every key has a default."""

    model: ModelConfig = ModelConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    recipe: RecipeConfig = RecipeConfig()
    limits: LimitsConfig = LimitsConfig()
    watchdog_seconds: Annotated[float, Field(gt=0)] = Field(
        300.0, description="A step that takes longer than this means that the engine hangs."
    )
