"""`wordmill`: the command-line program.

Statuses: 0; 1 where a stage failed; 2 for a mistake in what was given, told in one line. A traceback is a bug.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from llm.errors import WordmillError
from pipeline import run_commands

PARAMS = Path("params.yaml")
LOCAL = "127.0.0.1"

app = typer.Typer(
    help="From raw text to a preference-tuned language model. Run it in the repository root.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one of the params, such as dpo.beta=0.2.")
]


@app.command()
def use(name: Annotated[str, typer.Argument(help="A file in presets/, without its ending.")], set_: Set = None) -> None:
    """Write params.yaml from a preset."""
    from pipeline import presets
    from pipeline.files import replace

    replace(PARAMS, presets.from_preset(name, presets.parsed(set_ or [])))
    print(f"params.yaml is now presets/{name}.yaml{' with ' + ', '.join(set_) if set_ else ''}")


@app.command("presets")
def list_presets() -> None:
    """List the presets."""
    from pipeline import presets

    found = presets.names()
    width = max(map(len, found))
    for name, description in found.items():
        print(f"{name:{width}}  {description}")


@app.command()
def check() -> None:
    """Check params.yaml against the schema of every stage."""
    from pipeline import overrides
    from stages import params, schema

    overrides.recover_if_idle()
    schema.check(params.document(PARAMS))
    print("params.yaml is right")


@app.command()
def run(
    set_: Set = None,
    preset: Annotated[str | None, typer.Option(help="Use this preset in the place of params.yaml.")] = None,
    force: Annotated[bool, typer.Option(help="Run stages that have not changed, too.")] = False,
    from_: Annotated[str | None, typer.Option("--from", help="Begin at this stage.")] = None,
    until: Annotated[str | None, typer.Option(help="End with this stage.")] = None,
    stage_hours: Annotated[float | None, typer.Option(help="The longest that one stage may take.")] = None,
) -> None:
    """Rebuild through Prefect what has changed; changes given here are for this rebuild alone."""
    from pipeline import overrides, plan, presets

    changes = presets.parsed(set_ or [])
    with overrides.sole_rebuild():  # a mistake, or a rebuild that is at work here, is told before Prefect starts
        plan.text(preset, changes)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from pipeline.flow import rebuild

    state = rebuild(
        overrides=changes or None,
        preset=preset,
        force=force,
        from_stage=from_,
        until_stage=until,
        stage_hours=stage_hours,
        return_state=True,
    )
    print(f"wordmill: {state.message}", file=sys.stdout if state.is_completed() else sys.stderr)
    if not state.is_completed():
        raise typer.Exit(1)


@app.command()
def server(
    host: Annotated[str, typer.Option(help="The address to listen at; by default not from outside.")] = LOCAL,
    port: Annotated[int, typer.Option(help="Agents find it by PREFECT_API_URL.")] = 4200,
) -> None:
    """Start the Prefect server: schedules, runs, logs, pages."""
    from pipeline.agent import settings

    arguments = ["-m", "prefect", "server", "start", "--host", host, "--port", str(port)]
    os.execve(sys.executable, [sys.executable, *arguments], settings())


@app.command()
def deploy(
    pool: Annotated[str, typer.Option(help="The work pool.")] = "gpu",
    at_once: Annotated[int, typer.Option(min=1, help="Runs that its agents, all together, run at a time.")] = 1,
) -> None:
    """Tell the Prefect server of the pool, the deployments, and what to do with runs whose agent is gone."""
    from pipeline.deploy import deploy as tell

    tell(pool, at_once)
    print(f"work pool {pool}: at most {at_once} at a time; deployments rebuild/nightly, rebuild/manual")


@app.command()
def agent(pool: Annotated[str, typer.Option(help="The work pool.")] = "gpu") -> None:
    """Run what the Prefect server has for this checkout's pool, until stopped."""
    from pipeline import agent as worker

    worker.wait_for_server()
    raise typer.Exit(worker.run(pool))


@app.command()
def ui(port: Annotated[int, typer.Option(help="On this machine only.")] = 5000) -> None:
    """Open MLflow's pages on http://127.0.0.1:5000."""
    from stages.tracking_uri import is_local, tracking_uri, without_secrets

    uri = tracking_uri()
    if not is_local(uri):
        raise WordmillError(f"the runs are on a server: open {without_secrets(uri)}")
    # Its pages for training, and not those for chats, which it opens by itself.
    print(f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning", flush=True)
    # By default it starts 15 processes for jobs that nobody has asked for.
    os.environ.update(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_DISABLE_TELEMETRY="true")
    arguments = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *arguments])


@app.command()
def serve(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Models; without any, models/base and models/dpo.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="This machine's address to listen at; by default not from outside.")
    ] = LOCAL,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused.")] = 64,
) -> None:
    """Serve models as OpenAI's /v1/completions, and a page to play with."""
    from pipeline.serve.app import Limits
    from pipeline.serve.server import DEFAULT, compute_config, load
    from pipeline.serve.server import serve as answer

    config = compute_config(device, precision, threads)
    answer(load(folders or DEFAULT, config), host, port, Limits(waiting=waiting))


run_commands.add_to(app)


def main() -> None:
    """The program's entry point."""
    try:
        app()
    except WordmillError as error:
        print(f"wordmill: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
