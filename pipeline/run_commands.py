"""The commands of `wordmill` that are about runs: what would run, what ran, and how to get it back."""

from typing import Annotated

import typer


def status(
    force: Annotated[bool, typer.Option(help="As for `wordmill run --force`.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Unchanged stages, too.")] = False,
) -> None:
    """Say which stages `dvc repro` would run, and why, before it does."""
    from pipeline import overrides
    from pipeline.status import Verdict, forecast, lines
    from stages import params, schema

    overrides.recover_if_idle()
    schema.check(params.document(overrides.PARAMS))
    found = forecast(force)
    told = found if all_ else [each for each in found if each.verdict is not Verdict.UNCHANGED]
    for line in lines(told):
        print(line)
    counts = {verdict: sum(each.verdict is verdict for each in found) for verdict in Verdict}
    print(", ".join(f"{verdict.value}: {count}" for verdict, count in counts.items() if count))


def add_to(app: typer.Typer) -> None:
    """Put the commands into the program."""
    app.command()(status)
