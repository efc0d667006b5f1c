"""Headway: a long-context LLM inference server. Floors: `server` over `engine` over `kernels`."""

__version__ = "0.1.0"
