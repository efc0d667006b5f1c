"""TemplateRenderer: the server's side of the process that renders chat templates."""

import contextlib
import signal
import subprocess
import sys
import threading
from typing import BinaryIO, cast

import msgspec

from headway.engine.errors import RequestError, RequestFailed
from headway.server.template_process import Rendered, RenderJob, receive, send


class TemplateRenderer:
    """Renders in a process of its own; safe to use from several threads, which take turns.

    The process starts at once, so that the first conversation need not wait, and anew when a template overran
    its time. It ends with `close`, or when this process ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = _start()

    def render(self, job: RenderJob) -> str:
        """The text of the prompt.

        Raises:
            RequestError: the template refuses the conversation, or overruns its time or its size.
            RequestFailed: the process died.
        """
        try:
            question = msgspec.msgpack.encode(job)
        except (UnicodeEncodeError, OverflowError) as error:
            message = "a text holds a lone surrogate, or a number needs more than 64 bits"
            raise RequestError(message, "messages") from error
        with self._lock:
            try:
                answer = self._ask(question)
            except (EOFError, OSError) as error:
                status = self._reap()
                self._process = _start()
                if status == -signal.SIGPROF:
                    message = f"the model's chat template took longer than {job.seconds:g} seconds"
                    raise RequestError(message, "messages") from error
                raise RequestFailed(f"rendering the chat template ended with status {status}") from error
        rendered = msgspec.msgpack.decode(answer, type=Rendered)
        if rendered.refusal is not None:
            raise RequestError(f"the model's chat template refuses this: {rendered.refusal}", "messages")
        return rendered.text

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._process.kill()
            self._reap()

    def _ask(self, question: bytes) -> bytes:
        send(cast("BinaryIO", self._process.stdin), question)
        return receive(cast("BinaryIO", self._process.stdout))

    def _reap(self) -> int:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what the dead process did not read any more
                    stream.close()
        return self._process.wait()


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "headway.server.template_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the server alone
    )
