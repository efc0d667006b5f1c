"""Importing Headway changes nothing."""

import subprocess
import sys
from pathlib import Path


def test_importing_every_module_changes_nothing(floor_modules: dict[str, Path], tmp_path: Path) -> None:
    script = Path(__file__).with_name("import_everything.py")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = [name for name in floor_modules if not name.endswith(".__main__")]
    assert done.stdout.splitlines() == [f"imported {len(modules)}"]
