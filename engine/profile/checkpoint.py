"""Checkpoints: what a training has learnt so far, found again by the same training of the same model."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headway.engine.loaded import LoadedModel

CHECKPOINT_STEPS = 20


class Checkpoint:
    """One file. `path` None: nothing is kept."""

    def __init__(self, path: Path | None, kind: str, settings: BaseModel, loaded: LoadedModel) -> None:
        self._path = path
        self._identity = {kind: json.dumps([settings.model_dump(mode="json"), loaded.fingerprint.hex()])}

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace what was kept."""
        if self._path is None:
            return
        partial = self._path.with_name(f"{self._path.name}.partial")
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial, self._identity
        )
        partial.replace(self._path)

    def kept(self) -> dict[str, Tensor] | None:
        """What was kept, on the CPU; None: nothing, or it is damaged, or of other settings or weights."""
        if self._path is None or not self._path.is_file():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                if file.metadata() != self._identity:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
