"""The README's request, run as it stands against a real server, gives the README's answer."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .process import serve

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_request_of_the_readme_gets_its_answer(tmp_path: Path) -> None:
    request, answer = re.findall(r"```(?:python|text)\n(.*?)```", README.read_text(), re.DOTALL)[:2]
    with serve(tmp_path) as server:
        script = request.replace("http://127.0.0.1:8000", str(server.http.base_url).rstrip("/"))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == answer
