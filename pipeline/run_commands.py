"""The commands of `wordmill` that are about runs: what would run, what ran, and how to get it back."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from llm.errors import WordmillError
from stages.scratch import KEPT_BYTES, KEPT_DAYS

if TYPE_CHECKING:
    from pipeline.sweep import Outcome, Point

Run = Annotated[str, typer.Argument(help="A rebuild's MLflow run: its id, the id's beginning, its name, or `latest`.")]


def status(
    force: Annotated[bool, typer.Option(help="As for `wordmill run --force`.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Every stage and its reasons, unchanged ones too.")] = False,
    why: Annotated[bool, typer.Option("--why", help="All reasons of the stages that would not be left alone.")] = False,
) -> None:
    """Say which stages `dvc repro` would run, and why, before it does."""
    from pipeline import overrides
    from pipeline.status import Verdict, forecast, lines
    from stages import params, schema

    overrides.recover_if_idle()
    schema.check(params.document())
    params.say_absent(params.document())
    found = forecast(force)
    stages = {verdict: [each.stage for each in found if each.verdict is verdict] for verdict in Verdict}
    if len(stages[Verdict.UNCHANGED]) == len(found):
        print(f"nothing to do: all {len(found)} stages are up to date")
    else:
        for verdict, names in stages.items():
            if names:
                print(f"{verdict.value}: {', '.join(names)}")
    shown = found if all_ else [each for each in found if each.verdict is not Verdict.UNCHANGED]
    if why or all_:
        for line in lines(shown):
            print(line)
    elif shown:
        first = shown[0]
        print(f"{first.stage}: {'; '.join(first.reasons[:1])}; every reason: `wordmill status --why`")


def reproduce(
    run: Run,
    here: Annotated[bool, typer.Option("--here", help="With this checkout's code in the place of the run's.")] = False,
    cached: Annotated[bool, typer.Option("--cached", help="Outputs may come from this checkout's DVC cache.")] = False,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Only this stage and those it needs.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the worktree, even if all bytes are the same.")] = False,
) -> None:
    """Rebuild a run in a worktree of its own, and say stage by stage whether the bytes are the same."""
    from pipeline.reproduce import Options, lines
    from pipeline.reproduce import reproduce as rebuild
    from stages.history import find

    found = find(run)
    result = rebuild(found, Options(here, cached, until, keep), lambda line: print(line, flush=True))
    print()
    for line in lines(found, result):
        print(line)
    if not result.same:
        raise typer.Exit(1)


def diff(run_a: Run, run_b: Run) -> None:
    """Say what changed from one run to another, and what it did to the metrics."""
    from pipeline.differences import lines
    from stages.history import find

    for line in lines(find(run_a), find(run_b)):
        print(line)


def sweep(
    settings: Annotated[list[str], typer.Argument(metavar="KEY=[A,B]...", help="Params, each with a list of values.")],
    prefect: Annotated[bool, typer.Option("--prefect", help="As a Prefect flow, a subflow for each point.")] = False,
) -> None:
    """Rebuild every combination of some params, each in a worktree of its own; unchanged stages run once."""
    from pipeline import overrides
    from pipeline import sweep as sweeping

    overrides.recover_if_idle()
    grid = sweeping.points(settings)  # a mistake is told before anything starts
    with overrides.sole_rebuild():
        outcomes = _as_flow(grid) if prefect else sweeping.sweep(grid, lambda line: print(line, flush=True))
    print()
    for line in sweeping.lines(outcomes):
        print(line)
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(1)


def _as_flow(grid: "list[Point]") -> "list[Outcome]":
    from pipeline.agent import PREFECT_DEFAULTS

    os.environ.update(PREFECT_DEFAULTS | os.environ)
    from pipeline.sweep_flow import run

    return run(grid)


def metrics() -> None:
    """Print the main figures of the last rebuild."""
    from pipeline import figures

    for line in figures.metrics():
        print(line)


def summary(
    since: Annotated[float | None, typer.Option(min=0, help="When the rebuild began, in seconds since 1970.")] = None,
) -> None:
    """Print the figures, what was made where, and what to try next."""
    from pipeline import figures

    for line in figures.summary(since):
        print(line)


runs = typer.Typer(help="List what stopped and finished runs have left under runs/, or remove it.")


@runs.callback(invoke_without_command=True)
def list_runs(context: typer.Context) -> None:
    """List what stopped and finished runs have left under runs/, and how to go on from it."""
    from pipeline import states

    if context.invoked_subcommand is None:
        for line in states.lines(states.found()):
            print(line)


@runs.command()
def prune(
    days: Annotated[float, typer.Option(min=0, help="Remove what was not written to for so long.")] = KEPT_DAYS,
    gb: Annotated[float, typer.Option(min=0, help="Remove the oldest while a stage's take more.")] = KEPT_BYTES / 1e9,
) -> None:
    """Remove the states of runs over a limit of age or size; `--days 0` removes all."""
    from pipeline import states

    if not states.prune(days, gb * 1e9, print):
        print("nothing is over the limits")


def deliver() -> None:
    """Bring to MLflow what stages have kept in runs/undelivered/ while its server was down."""
    from stages.delivery import deliver_kept
    from stages.mailbox import Unavailable
    from stages.tracking_uri import tracking_uri

    try:
        count = deliver_kept(tracking_uri(), print)
    except Unavailable as error:
        raise WordmillError(f"{error}; what was kept is still in runs/undelivered/") from None
    if not count:
        print("nothing is kept")


def add_to(app: typer.Typer) -> None:
    """Put the commands into the program."""
    for command in (status, metrics, summary, reproduce, diff, sweep, deliver):
        app.command()(command)
    app.add_typer(runs, name="runs")
