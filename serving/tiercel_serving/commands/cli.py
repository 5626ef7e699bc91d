"""The ``tiercel`` command: a literal table of commands, each imported only when it is called."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .extras import extra_of_command, missing_library

BUILD, FEATURES, SERVE, MEASURE = "Build a release", "Compute features", "Serve it", "Measure it"


@dataclass(frozen=True)
class Entry:
    """One line of ``tiercel --help``: the module with the function ``command``, its help, and its heading."""

    module: str
    help: str
    panel: str

    @property
    def extra(self) -> str:
        """The extra of ``pip install "tiercel[extra]"`` that installs what the command imports."""
        return "server" if self.module.startswith(_SERVING) else "pipelines"


_SERVING, _PIPELINES = "tiercel_serving.commands", "tiercel_pipelines.commands"

#: Every command. Those of heavier packages are named here, and imported only when they are called.
COMMANDS: Mapping[str, Entry] = {
    "demo": Entry(f"{_PIPELINES}.demo", "Train, export, verify, serve; recommend for one user.", BUILD),
    "data": Entry(f"{_PIPELINES}.data", "Find or download a data set, check it, and describe it.", BUILD),
    "train": Entry(f"{_PIPELINES}.train", "Train a recipe: workflow, retrieval models, ranker.", BUILD),
    "export": Entry(f"{_PIPELINES}.export", "Compile a run into a release, and verify it.", BUILD),
    "build-engines": Entry(
        f"{_SERVING}.build_engines", "Build GPU engines on the GPU that will run them.", BUILD
    ),
    "verify": Entry(f"{_SERVING}.verify", "Compare each artefact with its golden vectors.", BUILD),
    "explain-features": Entry(
        f"{_PIPELINES}.explain_features", "Show what the compiler made of a workflow.", FEATURES
    ),
    "transform": Entry(f"{_PIPELINES}.transform", "Compute the features of Parquet files.", FEATURES),
    "score": Entry(f"{_PIPELINES}.score", "Write every user's recommendations to a Parquet file.", SERVE),
    "serve": Entry(f"{_SERVING}.serve", "Serve a release on Triton until Ctrl-C.", SERVE),
    "store": Entry(f"{_SERVING}.store", "Write live values of users, which take effect at once.", SERVE),
    "items": Entry(f"{_SERVING}.items", "Add, change and withdraw items between releases.", SERVE),
    "recommend": Entry(
        f"{_SERVING}.recommend", "Ask a server for recommendations, with their reasons.", SERVE
    ),
    "explain": Entry(f"{_SERVING}.explain", "Explain why a user gets an item, or does not.", SERVE),
    "related": Entry(f"{_SERVING}.related", "Ask a server for similar items.", SERVE),
    "health": Entry(f"{_SERVING}.health", "Check a server by one real inference: a container probe.", SERVE),
    "evaluate": Entry(f"{_PIPELINES}.evaluate", "Measure the quality of what is served.", MEASURE),
    "bench": Entry(f"{_SERVING}.bench", "Measure the latency and throughput of what is served.", MEASURE),
}


def load_command(name: str) -> Any:
    """Import a command or a group of commands, and return typer's object for it."""
    module = importlib.import_module(COMMANDS[name].module)
    group = getattr(module, "commands", None)
    if group is None:
        return typer.main.get_command(app_of(name, module.command))
    made: Any = typer.main.get_command(_group_of(COMMANDS[name].help))
    made.commands = {sub: typer.main.get_command(app_of(sub, command)) for sub, command in group.items()}
    return made


def _group_of(text: str) -> typer.Typer:
    """Return an app for a group, still without commands."""
    group = typer.Typer(
        help=text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )
    group.callback()(lambda: None)
    return group


def app_of(name: str, command: Callable[..., None]) -> typer.Typer:
    """Return an app of one command, whose docstring is the help text."""
    single = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    single.command(name, help="\n\n".join(" ".join(text.split()) for text in paragraphs))(command)
    return single


class LazyGroup(TyperGroup):
    """Lists commands from the table, and imports only the one that is called."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, entry in COMMANDS.items():
            listed = typer.core.TyperCommand(name, help=entry.help, rich_help_panel=entry.panel)
            self.commands[name] = listed

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the table's order."""
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the imported command instead of the listed one."""
        name, _, rest = super().resolve_command(ctx, args)
        extra = COMMANDS[str(name)].extra
        extra_of_command.set(extra)
        try:
            return name, load_command(str(name)), rest
        except ModuleNotFoundError as error:
            message = missing_library(error, extra)
            if message is None:
                raise
            typer.echo(f"error {message}", err=True)
            if "--json" in rest:
                typer.echo(json.dumps({"error": {"type": "ModuleNotFoundError", "message": message}}))
            raise typer.Exit(2) from None


app = typer.Typer(
    name="tiercel",
    cls=LazyGroup,
    help=(
        "Compile a trained multi-stage recommender into a Triton Inference Server model repository, serve "
        "it, and check that what is served is what was trained."
    ),
    epilog="Start with [bold]tiercel demo[/].",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tiercel {version('tiercel')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass
