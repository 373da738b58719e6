"""The `ngf` command: one subcommand a stage, its options derived from the stage's signature."""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ngf import __version__, params, stages
from ngf.errors import InputError

BAD_INPUT = 2
app = typer.Typer(
    no_args_is_help=True,
    help="Purify backdoored image classifiers by natural gradient fine-tuning.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

Params = Annotated[Path, typer.Option("--params", help="File with all numbers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


def _command(name: str) -> Callable[..., None]:
    """A Typer command with the stage's own arguments, plus --params and --json."""
    stage = stages.function(name)

    def command(*, params_file: Path, as_json: bool, **arguments: Any) -> None:
        settings = _settings(name, params_file, arguments)
        outcome = stages.run(name, settings=settings, **arguments)
        print(json.dumps(outcome.as_dict()) if as_json else outcome.message)

    command.__doc__ = stage.__doc__
    options = [_option(name, arg) for arg in stages.marks(name)]
    options += [
        _keyword("params_file", Params, Path("params.yaml")),
        _keyword("as_json", AsJson, False),
    ]
    # Typer reads both; the annotations must be objects here, not strings.
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {option.name: option.annotation for option in options}
    return command


def _option(name: str, arg: str) -> inspect.Parameter:
    """One argument of a stage as a command-line option with its help."""
    mark = stages.marks(name)[arg]
    text = mark if isinstance(mark, str) else mark.help
    default = inspect.signature(stages.function(name)).parameters[arg].default
    kind = typing.get_type_hints(stages.function(name))[arg]
    return _keyword(arg, Annotated[kind, typer.Option(help=text)], default)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _settings(name: str, file: Path, arguments: dict[str, Any]) -> dict[str, params.Settings]:
    """The sections of the parameter file that this stage reads."""
    content = params.read(file)
    paths = stages.sections(name, arguments)
    return {key: params.section(content, path, file) for key, path in paths.items()}


for _name in stages.NAMES:
    app.command(_name)(_command(_name))


@app.command()
def table(
    runs: Annotated[Path, typer.Option(help="Where the grid wrote its results.")] = Path("runs"),
    params_file: Params = Path("params.yaml"),
    markdown: Annotated[bool, typer.Option("--markdown", help="For a document.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the results of the grid."""
    from ngf import results
    from ngf.gate import Gate

    section = params.section(params.read(params_file), "promote", params_file)
    rows = results.collect(runs, params.parse(Gate, section, "promote"))
    print(results.render(rows, "json" if as_json else "markdown" if markdown else "text"))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


@contextlib.contextmanager
def one_line_for_bad_input() -> Iterator[None]:
    """Bad input is one line on standard error and exit code 2; a lost registry is exit code 1."""
    from ngf.lineage import LineageError

    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except LineageError as error:
        print(f"error: MLflow: {error}", file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """Run the command."""
    with one_line_for_bad_input():
        app(prog_name="ngf")
