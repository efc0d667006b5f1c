"""The `headway` command."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import headway
from headway.engine.errors import ConfigError, HeadwayError

app = typer.Typer(
    help="Headway serves long documents to language models through the OpenAI API.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

PROFILE_KINDS = ("duo", "layers", "lowrank", "moments", "outliers", "retrieval", "router", "sinks")
"""`headway.engine.profile.names()`, which imports torch; a test compares them."""

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="[bold]needle[/bold] (embedded, the default), a local folder, or a Hugging Face id.",
        show_default=False,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="YAML file; options on the command line win over it."
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel="Model", show_default=False),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="auto, cpu or cuda.", rich_help_panel="Model", show_default=False)
]
MaxContextOption = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        help="Longest prompt + answer; default: what the model allows and the memory holds.",
        rich_help_panel="Model",
    ),
]
MemoryOption = Annotated[
    float | None,
    typer.Option(
        "--memory",
        metavar="GIB",
        help="Memory for the KV cache; default: most of what is free.",
        rich_help_panel="Model",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="CPU threads; default: all cores.", rich_help_panel="Model"),
]


@app.command()
def serve(
    model: ModelArgument = None,
    config: ConfigOption = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on; default 127.0.0.1, so that only this machine can connect.",
            rich_help_panel="Server",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Default 8000; 0 picks a free one.", rich_help_panel="Server", show_default=False),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="A key that clients must send; may be repeated. Other users of this machine can see command "
            "lines: prefer the variable HEADWAY_API_KEYS, or server.api_key_file.",
            rich_help_panel="Server",
        ),
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The model's name in the API; default: MODEL.", rich_help_panel="Server"
        ),
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    max_context: MaxContextOption = None,
    memory: MemoryOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Serve MODEL over HTTP, as OpenAI's API: chat, completions, models.

    [bold]Examples[/bold]

    headway serve

    headway serve Qwen/Qwen3-8B --max-context 131072

    HEADWAY_API_KEYS=secret headway serve ./my-model --config headway.yaml --host 0.0.0.0
    """
    # Here, because torch takes seconds to import and `headway --help` should not.
    from headway.server.run import run
    from headway.server.settings import load_settings

    settings = load_settings(
        config,
        {
            **_model_overrides(model, dtype, device, max_context, memory, threads),
            "model.served_name": served_model_name,
            "server.host": host,
            "server.port": port,
            "server.api_keys": api_key or None,
        },
    )
    run(settings, Console(stderr=True))


@app.command()
def ask(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A text file, UTF-8.", show_default=False)],
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="What to ask about it.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Default: needle, the embedded model.", rich_help_panel="Model"),
    ] = None,
    config: ConfigOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    max_context: MaxContextOption = None,
    memory: MemoryOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Ask one QUESTION about a text FILE, without a server.

    [bold]Example[/bold]

    headway ask notes.txt "What is the access code of the north gate?"
    """
    # Here, because torch takes seconds to import and `headway --help` should not.
    from headway.server.ask import ask as run_ask
    from headway.server.settings import load_settings

    overrides = _model_overrides(model, dtype, device, max_context, memory, threads)
    settings = load_settings(config, overrides)
    run_ask(settings.engine, _read(file), question, max_tokens)


@app.command()
def recipes(
    method: Annotated[
        str | None,
        typer.Argument(metavar="METHOD", help="Show this one in full; default: all.", show_default=False),
    ] = None,
) -> None:
    """List the methods: what each reads, its settings, what it keeps, shares and rules out.

    A decode method decides which part of the KV cache every generated token reads, a prefill method what the
    tokens of a prompt read. Which ones serve is said in the file of [bold]headway serve --config FILE[/bold],
    under [bold]recipe[/bold]; requests may choose among those that the file offers.

    [bold]Examples[/bold]

    headway recipes

    headway recipes quest
    """
    # Here, because torch takes seconds to import and `headway --help` should not.
    from headway.server.recipes import show_all, show_one

    if method is None:
        show_all(Console())
    else:
        show_one(Console(), method)


@app.command()
def profile(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the profiles are kept.", show_default=False)
    ],
    model: ModelArgument = None,
    what: Annotated[
        str,
        typer.Option(
            metavar="KIND,…", help=f"What to measure, separated by commas: {', '.join(PROFILE_KINDS)}."
        ),
    ] = "retrieval",
    settings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file with settings by kind; default: each kind's own."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make again what stands in DIR already.")] = False,
    config: ConfigOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    max_context: MaxContextOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure MODEL once, to serve it accordingly: which heads retrieve, what layers share.

    Every kind becomes two files in DIR, and all of them one page, report.html. What stands there is kept.

    [bold]Examples[/bold]

    headway profile --what retrieval,sinks --out profiles/needle

    headway profile Qwen/Qwen3-8B --out profiles/qwen3-8b --device cuda
    """
    # Here, because torch takes seconds to import and `headway --help` should not.
    from headway.engine.config_section import load_yaml
    from headway.server.profile import profile as make_profiles
    from headway.server.settings import load_settings

    overrides = _model_overrides(model, dtype, device, max_context, None, threads)
    make_profiles(
        load_settings(config, overrides).engine.model,
        [kind.strip() for kind in what.split(",")],
        {} if settings is None else load_yaml(settings),
        out,
        force=force,
        console=Console(stderr=True),
    )


@app.command()
def version() -> None:
    """Print the version."""
    print(headway.__version__)


def main() -> None:
    """Run the command; errors that Headway foresees are printed without a traceback."""
    try:
        app()
    except HeadwayError as error:
        Console(stderr=True).print(
            f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def _model_overrides(
    model: str | None,
    dtype: str | None,
    device: str | None,
    max_context: int | None,
    memory: float | None,
    threads: int | None,
) -> dict[str, Any]:
    return {
        "model.name": model,
        "model.dtype": dtype,
        "model.device": device,
        "model.max_context": max_context,
        "model.threads": threads,
        "cache.memory_gib": memory,
    }


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
