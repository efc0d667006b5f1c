"""Import every module of Headway and report what that changed in the process. Run by a test, as a script."""

import importlib
import logging
import multiprocessing
import os
import pkgutil
import signal
import sys
import threading
import types
import warnings
from typing import Any

import torch
import transformers.masking_utils
import transformers.modeling_layers
import transformers.modeling_rope_utils
import transformers.modeling_utils  # noqa: F401 - loaded so that it is watched
from transformers import AttentionInterface, AttentionMaskInterface

WATCHED = ("torch", "transformers", "asyncio", "json", "logging", "socket")
SKIPPED = ("__main__",)


def settings() -> dict[str, Any]:
    """Process-wide state that a module could touch while it is imported."""
    return {
        "attention functions": sorted(AttentionInterface().valid_keys()),
        "mask functions": sorted(AttentionMaskInterface().valid_keys()),
        "environment": dict(os.environ),
        "working directory": os.getcwd(),
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "root log level and handlers": (logging.root.level, list(logging.root.handlers)),
        "warning filters": list(warnings.filters),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "torch dtype": torch.get_default_dtype(),
        "torch threads": torch.get_num_threads(),
        "torch gradients": torch.is_grad_enabled(),
        "torch matmul precision": torch.get_float32_matmul_precision(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch random state": bytes(torch.get_rng_state().numpy()),
    }


def functions() -> dict[tuple[str, str], object]:
    """Every function and class that the watched libraries hold, by module and name."""
    return {
        (name, attribute): value
        for name, module in list(sys.modules.items())
        if name.split(".")[0] in WATCHED and isinstance(module, types.ModuleType)
        for attribute, value in list(vars(module).items())
        if isinstance(value, types.FunctionType | type)
    }


def import_all() -> int:
    """Import the modules of the three floors; returns how many."""
    count = 0
    for floor in ("kernels", "engine", "server"):
        package = importlib.import_module(f"headway.{floor}")
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.rpartition(".")[2] not in SKIPPED:
                importlib.import_module(found.name)
                count += 1
    return count


if __name__ == "__main__":
    settings_before, functions_before = settings(), functions()
    count = import_all()
    settings_after, functions_after = settings(), functions()
    for key, value in settings_before.items():
        if settings_after[key] != value:
            print(f"changed: {key}: {value!r} -> {settings_after[key]!r}")
    for key, function in functions_before.items():
        if functions_after.get(key) is not function:
            print(f"replaced: {'.'.join(key)}")
    print(f"imported {count}")
