"""Templates that run away end, cost no other request anything, and never reach Python."""

import threading
import time

import pytest

from headway.engine.errors import RequestError, RequestFailed
from headway.server.template_process import RenderJob
from headway.server.template_renderer import TemplateRenderer


def job(template: str, content: str = "Hi", seconds: float = 30.0) -> RenderJob:
    return RenderJob(template, [{"role": "user", "content": content}], None, {}, False, False, seconds)


LOOPS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


def test_a_loop_ends_at_its_deadline_and_the_next_conversation_is_served(renderer):
    renderer.render(job("warm"))
    start = time.monotonic()
    with pytest.raises(RequestError, match=r"longer than 0.5 seconds") as error:
        renderer.render(job(LOOPS, seconds=0.5))
    assert time.monotonic() - start < 5
    assert error.value.field == "messages"
    assert renderer.render(job("{{ messages[0].content }}")) == "Hi"


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ messages[0].content * 40000000 }}", "characters"),
        ("{{ range(1000000) | list }}", "too big"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages[0].content * 1500000000 }}", "memory"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% set n = namespace() %}{{ n.__init__.__globals__ }}", "no attribute"),
        ("{{ messages[0].content / 2 }}", "unsupported operand"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% for %}", "Expected|expected"),
    ],
)
def test_what_a_template_must_not_do_is_refused(renderer, template, complaint):
    with pytest.raises(RequestError, match=complaint) as error:
        renderer.render(job(template))
    assert len(str(error.value)) < 500


def test_a_long_prompt_passes_unharmed(renderer):
    content = "长い文章 and words. " * 200_000
    assert renderer.render(job("{{ messages[0].content }}", content)) == content


def test_threads_take_turns(renderer):
    results: list[str] = []

    def ask(number: int) -> None:
        results.append(renderer.render(job("{{ messages[0].content }}", str(number) * 10_000)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [str(number) * 10_000 for number in range(8)]


@pytest.mark.parametrize("gone", [False, True], ids=["dying", "gone"])
def test_a_process_that_was_killed_is_replaced(gone):
    renderer = TemplateRenderer()
    try:
        renderer._process.kill()
        if gone:
            renderer._process.wait()
        with pytest.raises(RequestFailed, match="status -9"):
            renderer.render(job("x"))
        assert renderer.render(job("x")) == "x"
    finally:
        renderer.close()
    assert renderer._process.returncode == -9


def test_the_working_folder_is_no_place_for_its_modules(tmp_path, monkeypatch):
    (tmp_path / "resource.py").write_text("raise SystemExit('a file of the working folder ran')")
    monkeypatch.chdir(tmp_path)
    fresh = TemplateRenderer()
    try:
        assert fresh.render(job("{{ messages[0].content }}")) == "Hi"
    finally:
        fresh.close()
