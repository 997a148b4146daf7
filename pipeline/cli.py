"""`wordmill`: the command-line program.

Statuses: 0; 1 where a stage failed; 2 for a mistake in what was given, told in one line. A traceback is a bug.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from llm.errors import ConfigError, WordmillError
from pipeline import run_commands

LOCAL = "127.0.0.1"


def spin_briefly() -> None:
    """Have OpenMP's threads go to sleep soon after their work, some 30 µs, unless the user has set this.

    By default they keep a core busy for milliseconds, which costs many times the work where other programs run. It must
    be called before torch is imported.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


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
    """Write params.yaml from a preset; edits that this drops are listed, and a copy is kept."""
    from pipeline import presets
    from pipeline.files import replace
    from stages.params import PARAMS

    text = presets.from_preset(name, presets.parsed(set_ or []))
    for line in presets.keep_copy(PARAMS, text):
        print(line)
    replace(PARAMS, text)
    print(f"params.yaml is now presets/{name}.yaml{' with ' + ', '.join(set_) if set_ else ''}")


@app.command("set")
def set_values(
    settings: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="Such as pretrain.steps=200.")],
) -> None:
    """Change values in params.yaml; its comments and everything else stay as they are."""
    from pipeline import overrides, presets
    from pipeline.files import read, replace
    from pipeline.status import differing
    from stages import params

    changes = presets.parsed(settings, "wordmill set")
    with overrides.sole_rebuild():  # a rebuild with overrides has put another file in the place of params.yaml
        before = params.document()
        new = presets.changed(read(params.PARAMS), changes, params.PARAMS.name)
        replace(params.PARAMS, new)
    after = params.parse(new, params.PARAMS.name)
    lines = [line for section in after for line in differing(section, before.get(section, {}), after[section])]
    print("\n".join(lines) or "params.yaml has these values already")


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
    """Check params.yaml, the files that it names and the device for every stage, before any of them runs."""
    from pipeline import overrides
    from pipeline.repair import repair
    from stages import params, preflight, schema

    overrides.recover_if_idle()
    repair()
    content = params.document()
    preflight.check(schema.check(content))
    params.say_absent(content)
    print("params.yaml is valid")


@app.command()
def run(
    set_: Set = None,
    preset: Annotated[str | None, typer.Option(help="Use this preset in the place of params.yaml.")] = None,
    force: Annotated[bool, typer.Option(help="Run stages that have not changed, too.")] = False,
    from_: Annotated[str | None, typer.Option("--from", help="Begin at this stage.")] = None,
    until: Annotated[str | None, typer.Option(help="End with this stage.")] = None,
    stage_hours: Annotated[float | None, typer.Option(min=1e-3, help="The longest that one stage may take.")] = None,
) -> None:
    """Rebuild through Prefect what has changed; changes given here are for this rebuild alone."""
    from pipeline import dvc, overrides, plan, presets
    from pipeline.agent import PREFECT_DEFAULTS

    changes = presets.parsed(set_ or [])
    with overrides.sole_rebuild():  # a mistake, or a rebuild that is at work here, is told before Prefect starts
        plan.text(preset, changes)
        dvc.between(dvc.graph(), from_, until)
    os.environ.update(PREFECT_DEFAULTS | os.environ)
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
    port: Annotated[int, typer.Option(min=1, max=65535, help="Agents find it by PREFECT_API_URL.")] = 4200,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further name under which the server is reached; may be given again.")
    ] = None,
) -> None:
    """Start the Prefect server: schedules, runs, logs, pages."""
    from pipeline import server as prefect_server

    prefect_server.serve(host, port, allow_host or [])


@app.command()
def deploy(
    pool: Annotated[str, typer.Option(help="The work pool.")] = "gpu",
    at_once: Annotated[
        int | None,
        typer.Option(min=1, help="Runs that its agents, all together, run at a time; a new pool has 1."),
    ] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Make what is missing, and renew no deployment.")] = False,
) -> None:
    """Tell the Prefect server of the pool, the deployments, and what to do with runs whose agent is gone."""
    from pipeline.deploy import deploy as tell

    print(tell(pool, at_once, missing))


@app.command()
def agent(pool: Annotated[str, typer.Option(help="The work pool.")] = "gpu") -> None:
    """Run what the Prefect server has for this checkout's pool, until stopped."""
    from pipeline import agent as worker

    worker.wait_for_server()
    raise typer.Exit(worker.run(pool))


@app.command()
def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="On this machine only.")] = 5000) -> None:
    """Serve MLflow's pages on http://127.0.0.1:5000."""
    from stages import sqlite_store
    from stages.tracking_uri import PAGES, is_local, tracking_uri, without_secrets

    uri = tracking_uri()
    if not is_local(uri):
        raise WordmillError(f"the runs are on a server: open {without_secrets(uri)}")
    # Its pages for training, and not those for chats, which it opens by itself.
    print(f"http://127.0.0.1:{port}/#/experiments?{PAGES}", flush=True)
    # MLflow's own server would make a missing database in place.
    if work := sqlite_store.preparation(uri):
        work()
    # By default it starts 15 processes for jobs that nobody has asked for. The address may hold a password, and every
    # user of the machine can read a command line.
    os.environ.update(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_BACKEND_STORE_URI=uri)
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
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
    name: Annotated[
        list[str] | None, typer.Option(help="A name by which clients may address the server; may be given again.")
    ] = None,
) -> None:
    """Serve models as OpenAI's /v1/completions, and a page to play with."""
    spin_briefly()
    from pipeline.options import compute_config
    from pipeline.serve.limits import Limits
    from pipeline.serve.server import DEFAULT, load
    from pipeline.serve.server import serve as answer

    config = compute_config(device, precision, threads)
    answer(load(folders or DEFAULT, config), host, port, Limits(waiting=waiting), name or [])


@app.command()
def generate(
    prompt: Annotated[list[str] | None, typer.Argument(help="Texts to continue.")] = None,
    model: Annotated[Path, typer.Option(help="A model folder.")] = Path("models/dpo"),
    file: Annotated[Path | None, typer.Option(help="A prompt a line; - is standard input.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="The file is one prompt, line ends and all.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens, at most.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the fewest whose shares reach p.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Keep those at least p times as likely as the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 against tokens of prompt and text.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="-2 to 2, against tokens that were written.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="-2 to 2, the same, for each time.")] = 0.0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given again.")] = None,
    seed: Annotated[int, typer.Option(help="The same text for the same seed, whatever else is written.")] = 1,
    count: Annotated[int, typer.Option(min=1, help="Texts a prompt, with seeds one behind the other.")] = 1,
    slide: Annotated[bool, typer.Option("--slide", help="Past the context, forget its older half and go on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a text.")] = False,
    logprobs: Annotated[int | None, typer.Option(min=0, max=20, help="With --json: tokens, and the likeliest.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Continue texts with a model; on a terminal, as they are written, and without a prompt, line by line."""
    spin_briefly()
    from llm.sampling import Sampling
    from llm.streaming import Wanted
    from pipeline import generate as generating
    from pipeline.options import compute_config

    config = compute_config(device, precision, threads)
    if logprobs is not None and not as_json:
        raise WordmillError("--logprobs: they are shown with --json only")
    if "" in (stop or []):
        raise WordmillError("--stop: the text to stop at is empty")
    try:
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty)
    except ConfigError as error:
        raise WordmillError(f"--{error.field.replace('_', '-')}: {error.problem}") from None
    wanted = Wanted(max_tokens, sampling, stop or [], logprobs, "slide" if slide else "stop")
    generating.generate(model, prompt or [], file, whole, count, seed, wanted, config, as_json)


run_commands.add_to(app)


def main() -> None:
    """The program's entry point."""
    try:
        sys.exit(app(prog_name="wordmill", standalone_mode=False))
    except WordmillError as error:
        print(f"wordmill: {error}", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:  # Ctrl-C
        sys.exit(130)
    except Exception as error:
        # An unknown option or a value out of range: typer would draw a box of five lines around it.
        if not (words := getattr(error, "format_message", None)):
            raise
        if message := " ".join(words().split()):  # none where it has shown the help
            context = getattr(error, "ctx", None)  # the parser of options knows none, as where a value is missing
            command = context.command_path if context else _command(sys.argv[1:])
            print(f"wordmill: {message.rstrip('.')}; `{command} --help`", file=sys.stderr)
        sys.exit(2)


def _command(arguments: list[str]) -> str:
    """The command that the arguments begin with, as its help is asked for."""
    known = [word for word in arguments[:1] if not word.startswith("-")]
    return " ".join(["wordmill", *known])


if __name__ == "__main__":
    main()
