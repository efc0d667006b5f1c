"""`headway ask`: one question about a text, without a server."""

import asyncio
import time
from contextlib import aclosing

from rich import progress
from rich.console import Console

from headway.engine.client import EngineClient
from headway.engine.config import EngineConfig
from headway.engine.in_process_client import InProcessClient
from headway.engine.messages import Progress, SamplingParams, Submit
from headway.server.generation import Piece, generate
from headway.server.metrics import Metrics
from headway.server.sampling import TextOptions
from headway.server.tokenizer import Tokenizer


def ask(config: EngineConfig, document: str, question: str, max_tokens: int) -> None:
    """Print the answer to standard output; a progress bar and timings go to standard error.

    Raises:
        ConfigError, ModelRefused: the model cannot be loaded.
        ContextTooLong: the document does not fit.
    """
    notes = Console(stderr=True)
    with notes.status(f"loading {config.model.name}…"):
        tokenizer = Tokenizer.load(config.model)
        client = InProcessClient(config)
    asyncio.run(_ask(client, tokenizer, f"{document}\n\n{question}", max_tokens, notes))


async def _ask(
    client: EngineClient, tokenizer: Tokenizer, text: str, max_tokens: int, notes: Console
) -> None:
    try:
        prompt = await tokenizer.chat_async([{"role": "user", "content": text}])
        room = max(1, client.info.max_context - len(prompt))
        sampling = SamplingParams(temperature=0.0, max_tokens=min(max_tokens, room))
        submit = Submit(request_id="ask", prompt=prompt, sampling=sampling, progress=True)
        start = time.monotonic()
        first, generated = start, 0
        bar = _bar(notes)
        with bar:
            prefill = bar.add_task("reading", total=len(prompt))
            async with aclosing(
                generate(client, submit, tokenizer, TextOptions(), Metrics(client, ""))
            ) as events:
                async for event in events:
                    if isinstance(event, Progress):
                        bar.update(prefill, completed=event.done)
                    elif isinstance(event, Piece):
                        if not generated:
                            first = time.monotonic()
                            bar.stop()
                        generated += 1
                        print(event.text, end="", flush=True)
        print()
        decoding = time.monotonic() - first
        rate = f", {(generated - 1) / decoding:.1f} tokens/s" if generated > 1 else ""
        notes.print(
            f"{len(prompt)} prompt tokens in {first - start:.2f} s, {generated} tokens{rate}",
            style="dim",
            highlight=False,
        )
    finally:
        tokenizer.close()
        await client.close()


def _bar(console: Console) -> progress.Progress:
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("tokens"),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    )
