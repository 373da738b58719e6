"""The `ngf` command: one subcommand a stage, its options derived from the stage's signature.

`purify` alone is spelled out: it also takes a model and images that no stage made.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ngf import __version__, launch, params, stages
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
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be decided; write nothing anywhere.")
]


def _command(name: str) -> Callable[..., None]:
    """A Typer command with the stage's own arguments, plus --params and --json."""
    stage, needed = stages.function(name), _outputs(name)

    def command(
        *, params_file: Path, as_json: bool, dry_run: bool = False, **arguments: Any
    ) -> None:
        lacking = [key for key, value in arguments.items() if value is None and key in needed]
        if lacking and not dry_run:
            raise InputError(f"{name}: --{lacking[0]} is missing; only --dry-run goes without it")
        settings = _settings(name, params_file, arguments)
        do = stages.preview if dry_run else stages.run
        _print(do(name, settings=settings, **arguments), as_json)

    command.__doc__ = stage.__doc__
    options = [_option(name, arg) for arg in stages.marks(name)]
    options += [
        _keyword("params_file", Params, Path("params.yaml")),
        _keyword("as_json", AsJson, False),
    ]
    if stages.previews(name):
        options.append(_keyword("dry_run", DryRun, False))
    # Typer reads both; the annotations must be objects here, not strings.
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {option.name: option.annotation for option in options}
    return command


def _outputs(name: str) -> list[str]:
    """The outputs that a run of the stage must be given."""
    arguments = inspect.signature(stages.function(name)).parameters
    written = [arg for arg, mark in stages.marks(name).items() if isinstance(mark, stages.Writes)]
    return [arg for arg in written if arguments[arg].default is inspect.Parameter.empty]


def _option(name: str, arg: str) -> inspect.Parameter:
    """One argument of a stage as a command-line option with its help."""
    mark = stages.marks(name)[arg]
    text = mark if isinstance(mark, str) else mark.help
    default = inspect.signature(stages.function(name)).parameters[arg].default
    kind = typing.get_type_hints(stages.function(name))[arg]
    if stages.previews(name) and arg in _outputs(name):
        kind, default = kind | None, None
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


def _purify(
    model: Annotated[
        str,
        typer.Option(
            help="the model that may carry a backdoor: a folder of this project, or with --arch "
            "weights: safetensors, a state_dict, models:/NAME@ALIAS, runs:/ID/PATH."
        ),
    ],
    clean: Annotated[
        Path, typer.Option(help="the defender's clean split, or a folder of images for each class")
    ],
    out: Annotated[Path, typer.Option(help="the purified model")],
    defense: Annotated[str, typer.Option(help="defense to purify with")] = "ngf",
    report: Annotated[
        Path | None,
        typer.Option(
            help="JSON: seconds, parameters tuned, steps; by default OUT.json; of your own model "
            "OUT/report.json, and here too"
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="of your own model: a torchvision or timm name, or package.module:factory."
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="its layer of logits; by default the last linear one")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="of its normalisation: 0.485,0.456,0.406")
    ] = None,
    std: Annotated[str | None, typer.Option(help="of its normalisation: 0.229,0.224,0.225")] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="its classes in order, as the folders are called: cat,dog or @FILE"),
    ] = None,
    size: Annotated[int | None, typer.Option(help="images are resized to it")] = None,
    flip: Annotated[bool, typer.Option(help="a mirrored image keeps its class")] = False,
    holdout: Annotated[
        float | None,
        typer.Option(help="share of the images that only check ACC; 0.2 for a folder of images"),
    ] = None,
    least_acc: Annotated[
        float | None,
        typer.Option(
            help="of your own model: ACC before, as a fraction, from which on the work starts; by "
            "default half, or twice chance where that is less"
        ),
    ] = None,
    register: Annotated[
        str | None,
        typer.Option(help="of your own model: a new version of this name in the MLflow registry"),
    ] = None,
    params_file: Params = Path("params.yaml"),
    as_json: AsJson = False,
) -> None:
    """Purify a model: a victim of this project, or your own with --arch."""
    of_this_project = (Path(model) / "weights.safetensors").exists() and (
        clean / "card.json"
    ).exists()
    own = not of_this_project or any((arch, head, mean, std, classes, size, flip))
    names = {"model": model, "clean": clean, "defense": defense, "out": out}
    settings = _settings("purify", params_file, names)
    if holdout is None and own:
        holdout = settings["protocol"].get("holdout") or 0.2
    if holdout is not None:
        settings["protocol"] = {**settings["protocol"], "holdout": holdout}
    if not own:
        if least_acc is not None:
            raise InputError(
                "--least-acc has no place here: the model and the images are of this project"
            )
        if register is not None:
            raise InputError(
                f"--register {register} has no place here: model and images are of this project, "
                "and `ngf promote` registers its models by what `ngf evaluate` found"
            )
        place = report or out.with_name(f"{out.name}.json")
        arguments = {**names, "model": Path(model), "report": place}
        _print(stages.run("purify", settings=settings, **arguments), as_json)
        return
    from ngf.foreign import purify as foreign
    from ngf.foreign import register as registering

    given = foreign.Given(
        model=model,
        clean=clean,
        arch=arch,
        head=head,
        mean=_numbers("mean", mean),
        std=_numbers("std", std),
        classes=_names(classes),
        size=size,
        flip=flip,
        least_acc=least_acc,
    )
    run = (
        foreign.purify if register is None else functools.partial(registering.purify, name=register)
    )
    outcome = run(
        given,
        defense=defense,
        options=settings["options"],
        protocol=settings["protocol"],
        out=out,
        report=report,
        say=lambda line: print(line, file=sys.stderr),
    )
    _print(outcome, as_json)


def _print(outcome: stages.Outcome, as_json: bool) -> None:
    if launch.rank() == 0:
        print(json.dumps(outcome.as_dict()) if as_json else outcome.message)


def _numbers(name: str, text: str | None) -> list[float] | None:
    """Three numbers with commas between."""
    if text is None:
        return None
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if len(found) != 3 or not all(map(math.isfinite, found)):
        raise InputError(f"--{name} must be three numbers with commas between, got '{text}'")
    if max(found) > 1 or min(found) < 0 or (name == "std" and min(found) == 0):
        low = "above 0" if name == "std" else "0 or more"
        raise InputError(
            f"--{name} is for pixels in [0, 1]: three numbers {low} and up to 1, got '{text}'; "
            "those for pixels up to 255 are to be divided by 255"
        )
    return found


def _names(text: str | None) -> list[str] | None:
    """Names with commas between, or a file with one a line."""
    if text is None:
        return None
    try:
        words = Path(text[1:]).read_text().splitlines() if text[:1] == "@" else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--classes: cannot read {text[1:]}: {error}") from error
    found = [word.strip() for word in words if word.strip()]
    if len(found) < 2 or len(set(found)) != len(found):
        raise InputError(f"--classes must be two different names at least, got {found[:5]}")
    return found


for _name in stages.NAMES:
    app.command(_name)(_purify if _name == "purify" else _command(_name))


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
def rollback(
    name: Annotated[str, typer.Argument(help="A registered model, as ngf-signs-badnets.")],
    to: Annotated[
        int | None, typer.Option(help="Version; by default the champion before this one.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for those who come later.")] = "no reason given",
    as_json: AsJson = False,
) -> None:
    """Make an earlier champion, or another version that passed the gate, champion."""
    from ngf.lineage import rollback as registry

    left, chosen = registry.rollback(name, to=to, reason=reason)
    done = {"model": name, "from": left, "to": chosen, "reason": reason}
    print(json.dumps(done) if as_json else f"{name}: champion is version {chosen}, was {left}")


@app.command()
def history(
    name: Annotated[str, typer.Argument(help="A registered model, as ngf-signs-badnets.")],
    as_json: AsJson = False,
) -> None:
    """Print what became of every version of a registered model."""
    from ngf.lineage import history as registry

    rows = registry.history(name)
    print(json.dumps(rows, indent=2) if as_json else registry.render(rows))


@app.command()
def lineage(
    address: Annotated[
        str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID.")
    ],
    as_json: AsJson = False,
) -> None:
    """Print the chain from a model back to data, attack, seeds, settings and code."""
    from ngf.lineage import chain, tree

    found = chain.trace(address)
    print(json.dumps(tree.as_dict(found), indent=2) if as_json else tree.render(found))


@app.command()
def report(
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="Where a grid wrote its results; again for each other seed of it."),
    ] = None,
    rows: Annotated[
        list[Path] | None,
        typer.Option(help="Rows of `ngf bench` or benchmarks/ablation.py; again for more."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of index.html and table.md.")] = Path("report"),
    params_file: Params = Path("params.yaml"),
) -> None:
    """Write the results of grids as one HTML file and a Markdown table."""
    from ngf import report as reporting
    from ngf.stages.evaluate import Thresholds

    section = params.section(params.read(params_file), "evaluate", params_file)
    thresholds = params.parse(Thresholds, section, "evaluate")
    if not runs and not rows:
        runs = [Path("runs")]
    message, files = reporting.write(out, runs or [], rows or [], thresholds)
    reporting.record(message, files, section)
    print(message)


def _list(name: str, text: str) -> list[str]:
    """Words with commas between."""
    found = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise InputError(f"--{name} is empty")
    return found


def _seeds(text: str) -> list[int]:
    words = _list("seeds", text)
    if not all(word.isdecimal() for word in words):
        raise InputError(f"--seeds must be numbers with commas between, got '{text}'")
    return [int(word) for word in words]


@app.command()
def bench(
    dataset: Annotated[str, typer.Option(help="Data set.")] = "signs",
    attacks: Annotated[
        str | None, typer.Option(help="With commas between; all that exist without it.")
    ] = None,
    defenses: Annotated[
        str | None, typer.Option(help="With commas between; all that exist without it.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of split, attack and victim.")] = "0,1,2",
    norm: Annotated[str, typer.Option(help="Of the victims: batch or group.")] = "batch",
    jobs: Annotated[
        int, typer.Option(help="Processes at a time; CPU threads are divided among them.")
    ] = 1,
    root: Annotated[Path, typer.Option(help="Where victims and cells are kept.")] = Path(
        "runs/bench"
    ),
    raw: Annotated[
        Path | None, typer.Option(help="Where the raw images lie, instead of `datasets`.")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option(help="JSON file that takes all cells, one a line.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="PNG file for what each defense trades.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what is there already.")
    ] = False,
    params_file: Params = Path("params.yaml"),
) -> None:
    """Attacks x defenses x seeds: make what is lacking, then print the tables."""
    from ngf import plugins
    from ngf.bench import run, table
    from ngf.bench.picture import trade_off

    numbers = params.read(params_file)
    places = run.places(numbers, dataset, seeds=_seeds(seeds), norm=norm, root=root, raw=raw)
    chosen = run.Bench(
        places,
        _list("attacks", attacks) if attacks is not None else plugins.names("attacks"),
        _list("defenses", defenses) if defenses is not None else plugins.names("defenses"),
    )
    whole = dry_run or run.run(chosen, jobs, lambda line: print(line, file=sys.stderr))
    found = chosen.found()
    if not found:
        raise InputError(f"no cell is there below {root}")
    if rows is not None:
        rows.write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n")
    if picture is not None:
        trade_off(found, picture)
    print(table.render(found))
    if not whole:
        raise typer.Exit(1)


@app.command()
def repro(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Stages, as evaluate@signs-badnets-ngf; all.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Stages at a time; CPU threads are divided among them.")
    ] = 1,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether params.yaml's grid can run.")
    ] = False,
) -> None:
    """`dvc repro` with several stages at a time; one that fails stops those that need it alone."""
    from ngf import repro as parallel

    if check:
        parallel.check_grid()
        return
    found = parallel.run(targets or [], jobs, lambda line: print(line, file=sys.stderr))
    lost = [stage for stage, outcome in found.items() if outcome != "done"]
    print(f"{len(found) - len(lost)} of {len(found)} stages are done")
    if lost:
        raise typer.Exit(1)


@app.command()
def preflight(
    context: Annotated[str | None, typer.Option(help="Of the kubeconfig.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address of Kubeflow Pipelines.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for each question.")] = 5.0,
    params_file: Params = Path("params.yaml"),
    as_json: AsJson = False,
) -> None:
    """Say what a cluster lacks before a pod starts; exit code 1 if runs would fail."""
    import dataclasses
    import json

    from pipelines.cluster import Cluster
    from pipelines.preflight import FAIL
    from pipelines.preflight import preflight as findings

    section = params.section(params.read(params_file), "cluster", params_file)
    found = []
    for finding in findings(Cluster.of(section), context=context, kfp=endpoint, timeout=timeout):
        found.append(finding)
        if not as_json:
            print(finding, flush=True)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found]))
    if any(finding.state == FAIL for finding in found):
        sys.exit(1)


@app.command()
def submit(
    endpoint: Annotated[
        str | None,
        typer.Option(envvar="KFP_ENDPOINT", help="Address of Kubeflow Pipelines."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Of one pair.")] = None,
    attack: Annotated[str | None, typer.Option(help="Of one pair.")] = None,
    grid: Annotated[bool, typer.Option("--grid", help="All pairs of params.yaml's grid.")] = False,
    at_once: Annotated[int | None, typer.Option(min=1, help="Runs under way, at most.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until all have ended.")] = False,
    pause: Annotated[float, typer.Option(help="Seconds between two looks.")] = 10.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compile, and say no more.")] = False,
    every: Annotated[str | None, typer.Option(help="Recurring: '0 0 3 * * *'.")] = None,
    cancel: Annotated[str | None, typer.Option(help="End this run or schedule.")] = None,
    check: Annotated[bool, typer.Option("--preflight/--no-preflight")] = True,
    context: Annotated[str | None, typer.Option(help="Of the kubeconfig.")] = None,
    out: Annotated[Path, typer.Option(help="Where packages are written.")] = Path(
        "build/pipelines"
    ),
    params_file: Params = Path("params.yaml"),
) -> None:
    """Submit pairs to Kubeflow; what has succeeded with the same numbers is skipped."""
    from pipelines import command

    if sum([grid, cancel is not None, dataset is not None or attack is not None]) != 1:
        raise InputError("give --dataset and --attack, or --grid, or --cancel")
    numbers = params.read(params_file)
    if endpoint is None and not dry_run:
        raise InputError("--endpoint (or KFP_ENDPOINT) must say where Kubeflow Pipelines is")
    if cancel is not None:
        command.cancel(numbers, endpoint or "", cancel)
        return
    wanted = command.compiled(numbers, dataset, attack, out)
    if dry_run:
        return
    if check and not command.ready(numbers, endpoint or "", context):
        sys.exit(1)
    ended_well = command.submitted(
        numbers,
        endpoint or "",
        wanted,
        at_once=at_once,
        wait=wait,
        pause=pause,
        every=every,
        context=context,
    )
    if not ended_well:
        sys.exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


@contextlib.contextmanager
def one_line_for_bad_input() -> Iterator[None]:
    """Bad input is one line on standard error and exit code 2; a lost registry is exit code 1."""
    from ngf.lineage import LineageError, address

    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except LineageError as error:
        print(f"error: MLflow at {address()}: {error}", file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """Run the command."""
    with one_line_for_bad_input():
        app(prog_name="ngf")
