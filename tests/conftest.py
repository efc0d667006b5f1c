"""For all tests: kernels that Numba compiles are kept by the digest of all kernels' sources.

Numba itself looks for changes only in the file that a kernel stands in, not in those that it calls. Whichever
property test comes first waits for the compiler, so none has a deadline.
"""

import hashlib
import os
from pathlib import Path

from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent


def _sources() -> str:
    digest = hashlib.sha256()
    for source in sorted((ROOT / "kernels").rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".pytest_cache" / f"numba-{_sources()}"))

settings.register_profile("headway", deadline=None)
settings.load_profile("headway")
