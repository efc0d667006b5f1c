"""Runs in a process of its own: renders chat templates within limits of time, memory and size.

Templates come with the model, and what they are given comes from clients. Jinja's sandbox keeps them from
reaching Python, not from running for ever or filling the memory: that is left to the kernel.
"""

import resource
import signal
import sys
from typing import Any, BinaryIO

import msgspec
from transformers.utils.chat_template_utils import render_jinja_template

MAX_BYTES = 1024**3
MAX_CHARACTERS = 64 * 1024**2


class RenderJob(msgspec.Struct, frozen=True):
    """A conversation to render; `variables` are further names that the template sees."""

    template: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    variables: dict[str, Any]
    add_generation_prompt: bool
    continue_final_message: bool
    seconds: float


class Rendered(msgspec.Struct, frozen=True):
    """The prompt's text, or why there is none."""

    text: str
    refusal: str | None = None


def send(stream: BinaryIO, message: bytes) -> None:
    """Write one message behind its length in 8 bytes."""
    stream.write(len(message).to_bytes(8, "big"))
    stream.write(message)
    stream.flush()


def receive(stream: BinaryIO) -> bytes:
    """Read one message.

    Raises:
        EOFError: the other side has closed the stream.
    """
    size = int.from_bytes(_read(stream, 8), "big")
    return _read(stream, size)


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def render(job: RenderJob) -> Rendered:
    """Render, with Hugging Face's environment of filters and functions."""
    try:
        [text], _ = render_jinja_template(
            conversations=[job.messages],
            tools=job.tools,
            chat_template=job.template,
            add_generation_prompt=job.add_generation_prompt,
            continue_final_message=job.continue_final_message,
            **job.variables,
        )
    except MemoryError:
        return Rendered("", "it needs too much memory")
    except Exception as error:
        return Rendered("", str(error).partition("\n")[0][:300] or type(error).__name__)
    if len(text) > MAX_CHARACTERS:
        return Rendered("", f"it makes more than {MAX_CHARACTERS} characters")
    return Rendered(text)


def main() -> None:
    """Answer jobs on standard input until it is closed."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    decoder = msgspec.msgpack.Decoder(RenderJob)
    while True:
        try:
            job = decoder.decode(receive(sys.stdin.buffer))
        except EOFError:
            return
        # CPU time, so that a busy machine refuses nothing. No one handles the signal: it ends the process.
        signal.setitimer(signal.ITIMER_PROF, job.seconds)
        rendered = render(job)
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(sys.stdout.buffer, msgspec.msgpack.encode(rendered))


if __name__ == "__main__":
    main()
