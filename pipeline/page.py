"""The page of a rebuild in Prefect: what each stage did, the figures beside the last successful run's, the samples.

Prefect keeps the pages ("artifacts") on its server. The figures of every successful run are kept there as a table, too:
that is what the next one is compared with, on whichever machine it runs. Each deployment has its own.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from prefect.artifacts import Artifact, create_markdown_artifact, create_table_artifact
from prefect.client.schemas import State
from prefect.runtime import deployment, flow_run

from llm.errors import WordmillError
from stages import lineage
from stages.mailbox import Unavailable
from stages.metrics import figures
from stages.store import client, reachable
from stages.tracking_uri import PAGES, experiment_name, is_local, is_sqlite, sqlite_path, without_secrets

SAMPLES = Path("reports/samples.md")
LOCAL_PAGES = "http://127.0.0.1:5000"  # where `wordmill ui` shows a database of this machine's
RAN = "ran"  # the message of a stage's state that says so


def publish(states: Mapping[str, State[Any]], rebuild: str, store: str, saved: str | None, complete: bool) -> None:
    """Make the page of this flow run from the working directory.

    `store` is MLflow's address. `complete`: every stage of the pipeline is up to date, so that the next run is to be
    compared with this one.
    """
    figures = current_figures()
    name = f"-{deployment.name}" if deployment.name else ""
    last = last_figures(f"figures{name}")
    ran = any(state.message == RAN or not state.is_completed() for state in states.values())
    link = mlflow_link(rebuild, store) if ran else "Nothing ran: the figures are those of earlier runs."
    samples = SAMPLES.read_text(encoding="utf-8") if SAMPLES.exists() else ""
    text = markdown({stage: told(state) for stage, state in states.items()}, figures, last, samples, link, saved)
    create_markdown_artifact(text, key=f"rebuild{name}", description="What this rebuild did and gave")
    if complete:
        rows = [{"figure": figure, "value": value} for figure, value in figures.items()]
        create_table_artifact(rows, key=f"figures{name}", description="All figures of a successful rebuild")


def markdown(
    stages: Mapping[str, str],
    figures: Mapping[str, float],
    last: Mapping[str, float],
    samples: str,
    link: str,
    saved: str | None,
) -> str:
    """The page as Markdown; `last` are the figures to compare with, none at the first time."""
    parts = [f"# Rebuild {flow_run.name or ''}\n", f"{link}\n"]
    if saved:
        parts.append(f"Saved as the DVC experiment `{saved}`: `dvc exp apply {saved}` brings it into a checkout.\n")
    parts.append("## Stages\n\n| stage | |\n| --- | --- |")
    parts += [f"| {stage} | {_cell(what)} |" for stage, what in stages.items()]
    parts.append("\n## Figures\n\n| figure | now | last successful run | change |\n| --- | ---: | ---: | ---: |")
    for figure, value in figures.items():
        before = last.get(figure)
        change = "" if before is None else "=" if before == value else f"{value - before:+.4g}"
        parts.append(f"| {figure} | {value:.6g} | {'' if before is None else f'{before:.6g}'} | {change} |")
    gone = [figure for figure in last if figure not in figures]
    if gone and figures:
        parts.append(f"\nNo longer there: {', '.join(gone)}.")
    if samples:
        lines = with_stars(samples).splitlines()
        parts.append("\n" + "\n".join(f"#{line}" if line.startswith("#") else line for line in lines))
    return "\n".join(parts) + "\n"


def with_stars(samples: str) -> str:
    """The samples with `**` in the place of `<b>`: Prefect's pages leave tags out.

    Two stars after punctuation end nothing if a letter follows; a hair space between them does.
    """
    return re.sub(
        r"<b>(\s*)(.*?)(\s*)</b>(\S?)",
        lambda found: f"{found[1]}**{found[2]}**{found[3]}" + (f"\u200a{found[4]}" if found[4] else ""),
        samples,
    )


def told(state: State[Any]) -> str:
    """A stage's state in a few words."""
    name = state.name or state.type.value
    return f"{name}: {state.message}" if state.message and state.message != RAN else name


def current_figures() -> dict[str, float]:
    """The numbers of every metrics file that dvc.yaml declares and that is there, as `stage/name`."""
    found: dict[str, float] = {}
    for stage in lineage.declared():
        there = [path for path in stage.metrics if Path(path).exists()]
        found |= {f"{stage.name}/{name}": value for name, value in figures(stage.name, there).items()}
    return found


def last_figures(key: str) -> dict[str, float]:
    """The figures of the last successful run; none if there was none."""
    artifact = cast(Artifact | None, Artifact.get(key))
    rows = json.loads(str(artifact.data)) if artifact and artifact.data else []
    return {row["figure"]: row["value"] for row in rows}


def mlflow_link(rebuild: str, uri: str) -> str:
    """A sentence with a link to the rebuild's run in MLflow, which is told of the Prefect run in turn."""
    if is_sqlite(uri) and not sqlite_path(uri).exists():
        return "MLflow has no run of this rebuild."
    try:
        with reachable(uri):
            mlflow = client(uri)
            experiment = mlflow.get_experiment_by_name(experiment_name())
            query = f"tags.`wordmill.kind` = 'rebuild' and tags.`wordmill.rebuild` = '{rebuild}'"
            runs = mlflow.search_runs([experiment.experiment_id], query, max_results=1) if experiment else []
            if experiment is None or not runs:
                return "MLflow has no run of this rebuild."
            run_id = runs[0].info.run_id
            mlflow.set_tag(run_id, "prefect.flow_run", str(flow_run.name))
            mlflow.set_tag(run_id, "prefect.flow_run_url", str(flow_run.ui_url))
    except (Unavailable, WordmillError) as error:  # a store that is down costs the link, not the rebuild
        return f"MLflow cannot be asked: {error}"
    pages = LOCAL_PAGES if is_local(uri) else without_secrets(uri).rstrip("/")
    address = f"{pages}/#/experiments/{experiment.experiment_id}/runs/{run_id}?{PAGES}"
    hint = " (after `make ui` on the agent's machine)" if is_local(uri) else ""
    return f"[The run in MLflow]({address}){hint}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
