"""Runs read back from MLflow: what `stages.tracking` left of a rebuild, as plain data.

A rebuild is its parent run and, for each stage, the run that the parent links: its own child, or the earlier run that
made the output of a stage that was skipped. Each stage's record has the SHA-256 of everything that went in and came
out, so that two rebuilds, or a rebuild and a folder, are compared without any file of theirs at hand.
"""

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llm.errors import WordmillError
from stages import lineage, sqlite_store
from stages.mailbox import Unavailable
from stages.stage_run import LEFT_OUT
from stages.store import client, reachable
from stages.tracking_uri import experiment_name, is_sqlite, sqlite_path, tracking_uri, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LATEST = "latest"
SHORTEST = 4  # characters of a run's id that may stand for it
LISTED = 10  # runs that are named where a word stands for several
REBUILD = "tags.`wordmill.kind` = 'rebuild'"


@dataclass(frozen=True)
class StageRecord:
    """One stage as its run tells of it. Digests are SHA-256 by path; packages are versions by name."""

    name: str
    run_id: str
    status: str
    params: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)  # the user's own files, which params name
    packages: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rebuild:
    """One rebuild. `patch` leads from `commit` to its code; `left_out` has SHA-256 by path of what is in neither."""

    run_id: str
    name: str
    status: str
    commit: str | None
    patch: bytes
    left_out: Mapping[str, str]
    params: str  # the text of params.yaml
    metrics: Mapping[str, float]
    stages: Mapping[str, StageRecord]


def find(text: str) -> Rebuild:
    """The rebuild with this id or name, the beginning of an id, the id of one of its stages' runs, or `latest`.

    Raises WordmillError for none, for several, and for a store that does not answer.
    """
    uri = tracking_uri()
    if is_sqlite(uri) and not sqlite_path(uri).exists():
        raise WordmillError(f"{sqlite_path(uri).name}: not found, so there are no runs; `dvc repro` makes the first")
    try:
        with reachable(uri):
            mlflow = client(uri)
            if is_sqlite(uri):
                sqlite_store.relocate(sqlite_path(uri), lambda line: print(line, file=sys.stderr))
            return _rebuild(mlflow, _run(mlflow, text))
    except Unavailable as error:
        raise WordmillError(f"MLflow: {error}") from None


def _run(mlflow: "MlflowClient", text: str) -> "Run":
    name = experiment_name()
    experiment = mlflow.get_experiment_by_name(name)

    def search(query: str, limit: int) -> "list[Run]":
        newest_first = ["attributes.start_time DESC"]
        place = [experiment.experiment_id] if experiment else []
        return list(mlflow.search_runs(place, query, max_results=limit, order_by=newest_first)) if place else []

    if text == LATEST:
        matching = search(f"{REBUILD} AND attributes.status = 'FINISHED'", 1)
    else:
        matching = [run] if (run := _by_id(mlflow, text)) else []
        if not matching and re.fullmatch(f"[0-9a-f]{{{SHORTEST},31}}", text):
            matching = search(f"attributes.run_id LIKE '{text}%'", LISTED)
        if not matching and not {"'", '"'} <= set(text):
            quote = '"' if "'" in text else "'"
            matching = search(f"{REBUILD} AND attributes.run_name = {quote}{text}{quote}", LISTED)
    if len(matching) == 1:
        tags = matching[0].data.tags
        is_stage = tags.get("wordmill.kind") == "stage"
        return mlflow.get_run(tags["mlflow.parentRunId"]) if is_stage else matching[0]
    if matching:
        raise WordmillError(f"{text}: several runs: {', '.join(run.info.run_id for run in matching)}; give an id")
    newest = "; ".join(f"{run.info.run_id[:8]} ({run.info.run_name})" for run in search(REBUILD, 5))
    raise WordmillError(f"{text}: no such run in experiment {name}; {f'the newest are {newest}' if newest else 'none'}")


def _by_id(mlflow: "MlflowClient", text: str) -> "Run | None":
    from mlflow.exceptions import MlflowException

    if not re.fullmatch("[0-9a-f]{32}", text):
        return None
    try:
        return mlflow.get_run(text)
    except MlflowException as error:
        if error.get_http_status_code() == 404:
            return None
        raise


def _rebuild(mlflow: "MlflowClient", run: "Run") -> Rebuild:
    tags = run.data.tags
    linked = {name.removeprefix("stage."): tags[name] for name in tags if name.startswith("stage.")}
    order = [stage.name for stage in lineage.declared()]
    names = sorted(linked, key=lambda name: order.index(name) if name in order else len(order))
    params = _artifact(mlflow, run, "params.yaml")
    return Rebuild(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        status=run.info.status,
        commit=tags.get("mlflow.source.git.commit"),
        patch=_artifact(mlflow, run, "code/uncommitted.patch") or b"",
        left_out=_left_out(mlflow, run),
        params=(params or b"").decode(),
        metrics=dict(run.data.metrics),
        stages={name: _stage(mlflow, name, mlflow.get_run(linked[name])) for name in names},
    )


def _left_out(mlflow: "MlflowClient", run: "Run") -> dict[str, str]:
    if content := _artifact(mlflow, run, LEFT_OUT):
        return dict(json.loads(content))
    names = run.data.tags.get("git.left_out_of_patch", "")  # of earlier versions: names alone, as a tag
    return dict.fromkeys(names.split(", ") if names else [], "")


def _stage(mlflow: "MlflowClient", name: str, run: "Run") -> StageRecord:
    def digests(path: str) -> dict[str, str]:
        content = _artifact(mlflow, run, path)
        return dict(json.loads(content)) if content else {}

    packages = (_artifact(mlflow, run, "environment/packages.txt") or b"").decode()
    return StageRecord(
        name=name,
        run_id=run.info.run_id,
        status=run.info.status,
        params=dict(run.data.params),
        inputs=digests("lineage/inputs.json"),
        outputs=digests("lineage/outputs.json"),
        sources=digests("lineage/sources.json"),
        packages=versions(packages),
        hardware={
            key.removeprefix("hardware."): value for key, value in run.data.tags.items() if key.startswith("hardware.")
        },
    )


def versions(text: str) -> dict[str, str]:
    """Versions by name, from lines `name==version`."""
    return {name: version for name, equals, version in (line.partition("==") for line in text.splitlines()) if equals}


def _artifact(mlflow: "MlflowClient", run: "Run", path: str) -> bytes | None:
    """A file that was kept with a run; None where the run has none of that name."""
    folder = path.rpartition("/")[0]
    if path not in {entry.path for entry in mlflow.list_artifacts(run.info.run_id, folder or None)}:
        if not folder and not mlflow.list_artifacts(run.info.run_id):
            place = without_secrets(run.info.artifact_uri)
            raise WordmillError(f"{run.info.run_name}: its files are not at {place}: was the folder moved or deleted?")
        return None
    with tempfile.TemporaryDirectory() as temporary:
        return Path(mlflow.download_artifacts(run.info.run_id, path, temporary)).read_bytes()
