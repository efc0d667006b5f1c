"""How much memory a device has and how much of it is free."""

from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")


def device_memory(device: torch.device, cgroup: Path = CGROUP) -> tuple[int, int]:
    """Total and free bytes; on a CPU within the limit of the container, if there is one."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit = _read(cgroup / "memory.max")
    if limit.isdigit():
        used = int(_read(cgroup / "memory.current") or 0) - _reclaimable(cgroup)
        total = min(total, int(limit))
        free = min(free, max(0, int(limit) - used))
    return total, free


def _reclaimable(cgroup: Path) -> int:
    for line in _read(cgroup / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
