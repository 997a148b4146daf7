"""MLflow: the one place that talks to it.

One parent run per rebuild, one child run per stage that really ran:

- the child has the stage's params, metrics over time, artifacts, data sets, digests of inputs and outputs, commit,
  uncommitted changes, packages and hardware. It ends FINISHED, FAILED with the error in a tag, or KILLED;
- the parent is made by the first stage that runs. It links every stage's run (tags `stage.<name>` and a table in its
  description): its own child, or, for a stage that DVC skipped, the earlier run that made the output. The headlines
  of all linked runs (what `dvc metrics show` shows) are its metrics, as `<stage>/<name>`, so one row of MLflow's
  table is one rebuild.
  It is RUNNING while a stage runs, FAILED after a failed stage, FINISHED otherwise.

Everything goes through a process beside the stage (`stages.mailbox`, and this module run as a program), MLflow's import
of over a second included. By default runs are in `mlflow.db` and their files in `mlartifacts/`; MLFLOW_TRACKING_URI and
MLFLOW_EXPERIMENT_NAME are honoured.
"""

import contextlib
import getpass
import json
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from llm.errors import WordmillError
from stages import lineage, provenance, registry
from stages.mailbox import KILLED_PATIENCE, Event, Mailbox, Unavailable, now, serve
from stages.tracking_uri import client, experiment_name, is_sqlite, reachable, sqlite_path, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

KIND = {"mlflow.experimentKind": "custom_model_development"}  # of an experiment: opens among the runs, not the chats
UNDELIVERED = Path("runs/undelivered")
LOCK = Path("runs/tracking.lock")
LONGEST_PARAM = 6000  # characters; MLflow's own limits
LONGEST_TAG = 8000
LONGEST_DIGEST = 36


class Tracker:
    """The MLflow run of one stage, from `with` to its end.

    `params` are dotted names and values, `inputs` digests by path, `key` the stage's fingerprint. Raises
    WordmillError where MLflow is wrongly set up; a store that is down costs a warning, not the stage.
    """

    def __init__(self, stage: str, params: Mapping[str, Any], inputs: Mapping[str, str], key: str) -> None:
        self._stage = stage
        self._start = {
            "kind": "start",
            "stage": stage,
            "params": dict(params),
            "inputs": dict(inputs),
            "fingerprint": key,
            "rebuild": lineage.rebuild(),
            "pid": str(os.getpid()),
            "started": lineage.started(os.getpid()),
        }

    def __enter__(self) -> "Tracker":
        start = {**self._start, "uri": tracking_uri(), "time": now()}
        kept = UNDELIVERED / f"{self._stage}-{self._start['pid']}-{self._start['started']}.jsonl"
        self._mailbox = Mailbox("stages.tracking", kept, start)
        return self

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Figures at a step."""
        self._mailbox.post("metrics", values={name: float(value) for name, value in values.items()}, step=step)

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file or folder to keep with the run. It is read in the background: leave it as it is until the end."""
        if not path.exists():
            raise FileNotFoundError(path)
        self._mailbox.post("artifact", path=str(path), folder=folder)

    def dataset(self, name: str, source: str, digest: str, counts: Mapping[str, int]) -> None:
        """A data set that the stage used or made: what it is called, where it is from, its hash, its sizes."""
        self._mailbox.post("dataset", name=name, source=source, digest=digest, counts=dict(counts))

    def tags(self, values: Mapping[str, str]) -> None:
        """Short texts about the run."""
        self._mailbox.post("tags", values={name: str(value) for name, value in values.items()})

    def sources(self, digests: Mapping[str, str]) -> None:
        """Digests of the files of the user's own that the stage has read, by path."""
        self._mailbox.post("sources", digests=dict(digests))

    def headlines(self, values: Mapping[str, float]) -> None:
        """The few figures by which rebuilds are compared: the parent shows these and no others."""
        self._mailbox.post("headlines", values=dict(values))

    def model(self, folder: Path, name: str, tags: Mapping[str, str]) -> None:
        """A model folder to register under `name` (`stages.registry`). Leave it as it is until the end."""
        self._mailbox.post("model", path=str(folder), name=name, tags=dict(tags))

    def outputs(self, digests: Mapping[str, str]) -> None:
        """Digests of what the stage has made, by path: how later rebuilds find this run."""
        self._mailbox.post("outputs", digests=dict(digests))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            status = "FINISHED"
        elif isinstance(error, Exception):
            status = "FAILED"
        else:
            status = "KILLED"
        # The end of the parent process sends another SIGTERM: the run must be closed all the same.
        in_main = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN) if in_main else None
        try:
            message = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else ""
            try:
                self._mailbox.close(KILLED_PATIENCE if status == "KILLED" else 60, status=status, error=message)
            except WordmillError as refused:
                if error is None:
                    raise
                print(f"warning: {refused}", file=sys.stderr)
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, handler)


class StageRun:
    """A stage's run in the store; it lives in the process beside it. Its constructor makes it, `deliver` fills it."""

    def __init__(self, start: Event) -> None:
        self._uri: str = start["uri"]
        self._start = start
        self._stage: str = start["stage"]
        self._makers: dict[str, Run] = {}  # finished runs by stage key
        with reachable(self._uri, starting=True), _locked():
            self._client = client(self._uri)
            self._experiment = self._find_experiment()
            self._bury(self._search(f"attributes.status = 'RUNNING' and tags.`wordmill.host` = '{lineage.host()}'"))
            self._parent = self._find_parent()
            self._run_id = self._new_run(
                self._stage,
                {
                    "mlflow.parentRunId": self._parent,
                    "mlflow.source.name": f"stages.{self._stage}",
                    "wordmill.kind": "stage",
                    "wordmill.stage": self._stage,
                    "wordmill.key": lineage.key(self._stage, start["params"], start["inputs"]),
                    "wordmill.fingerprint": start["fingerprint"],
                    **{f"hardware.{name}": value for name, value in provenance.hardware().items()},
                },
            )
            self._log_params(self._run_id, start["params"])
            self._client.log_text(self._run_id, json.dumps(start["inputs"], indent=2), "lineage/inputs.json")
            self._client.log_text(self._run_id, provenance.packages(), "environment/packages.txt")
            if Path("dvc.lock").exists():
                self._client.log_artifact(self._run_id, "dvc.lock", "lineage")
            self._log_patch(self._run_id)
            self._update_parent()

    def deliver(self, events: Sequence[Event]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

        with reachable(self._uri):
            metrics = [
                Metric(_safe(name), value, event["time"], event["step"])
                for event in events
                if event["kind"] == "metrics"
                for name, value in event["values"].items()
            ]
            for first in range(0, len(metrics), 1000):
                self._client.log_batch(self._run_id, metrics=metrics[first : first + 1000])
            for event in events:
                match event["kind"]:
                    case "artifact":
                        path, folder = Path(event["path"]), event["folder"]
                        if path.is_dir():
                            self._client.log_artifacts(self._run_id, str(path), f"{folder}/{path.name}".lstrip("/"))
                        else:
                            self._client.log_artifact(self._run_id, str(path), folder or None)
                    case "dataset":
                        data = Dataset(
                            event["name"],
                            event["digest"][:LONGEST_DIGEST],
                            source_type="local",
                            source=json.dumps({"uri": event["source"]}),
                            profile=json.dumps(event["counts"]),
                        )
                        context = InputTag("mlflow.data.context", self._stage)
                        self._client.log_inputs(self._run_id, [DatasetInput(data, [context])])
                    case "tags":
                        self._tag(self._run_id, event["values"])
                    case "headlines":
                        self._tag(self._run_id, {"wordmill.headlines": _fitting(event["values"])})
                    case "model":
                        registry.register(self._client, self._run_id, Path(event["path"]), event["name"], event["tags"])
                    case "sources":
                        text = json.dumps(event["digests"], indent=2)
                        self._client.log_text(self._run_id, text, "lineage/sources.json")
                    case "outputs":
                        self._tag(self._run_id, {"wordmill.outputs": json.dumps(event["digests"], sort_keys=True)})
                        text = json.dumps(event["digests"], indent=2)
                        self._client.log_text(self._run_id, text, "lineage/outputs.json")
                    case "end":
                        self._end(event["status"], event["error"], event["time"])

    def _end(self, status: str, error: str, time: int) -> None:
        if error:
            self._tag(self._run_id, {"error": error})
        with _locked():
            self._client.set_terminated(self._run_id, status, time)
            self._update_parent()

    def _find_experiment(self) -> str:
        name = experiment_name()
        found = self._client.get_experiment_by_name(name)
        if found is None:
            folder = None  # the server's own
            if is_sqlite(self._uri):
                folder = (sqlite_path(self._uri).absolute().parent / "mlartifacts").as_uri()
            return str(self._client.create_experiment(name, artifact_location=folder, tags=KIND))
        if found.lifecycle_stage == "deleted":
            raise WordmillError(
                f"MLflow experiment {name!r} is deleted; `mlflow experiments restore -x {found.experiment_id}` "
                "brings it back, or set MLFLOW_EXPERIMENT_NAME"
            )
        return str(found.experiment_id)

    def _find_parent(self) -> str:
        mine = self._search(
            f"tags.`wordmill.kind` = 'rebuild' and tags.`wordmill.rebuild` = '{self._start['rebuild']}'"
        )
        if mine:
            return str(mine[0].info.run_id)
        name = f"rebuild {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        parent = self._new_run(name, {"mlflow.source.name": "dvc.yaml", "wordmill.kind": "rebuild"})
        self._log_params(parent, lineage.flat(lineage.document()))
        for path in (lineage.PARAMS, lineage.PIPELINE):
            if path.exists():
                self._client.log_artifact(parent, str(path))
        self._log_patch(parent)
        return parent

    def _new_run(self, name: str, tags: Mapping[str, str]) -> str:
        own = {
            "wordmill.rebuild": self._start["rebuild"],
            "wordmill.host": lineage.host(),
            "wordmill.pid": self._start["pid"],
            "wordmill.started": self._start["started"],
            "mlflow.source.type": "LOCAL",
        }
        with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
            own["mlflow.user"] = getpass.getuser()
        if commit := provenance.commit():
            own["mlflow.source.git.commit"] = commit
        run = self._client.create_run(self._experiment, self._start["time"], {**own, **tags}, name)
        return str(run.info.run_id)

    def _update_parent(self) -> None:
        """Set the parent's status, links and metrics from its children and from the runs that made the rest."""
        children: dict[str, Run] = {}  # the newest of each stage: one that failed may have been run again
        for run in self._bury(self._search(f"tags.`mlflow.parentRunId` = '{self._parent}'")):
            children.setdefault(run.data.tags["wordmill.stage"], run)
        linked = children | {name: run for name, run in self._made_earlier(children) if name not in children}
        order = [stage.name for stage in lineage.declared()]
        linked = {name: linked[name] for name in sorted(linked, key=lambda n: order.index(n) if n in order else -1)}

        parent = self._client.get_run(self._parent)
        links = {f"stage.{name}": run.info.run_id for name, run in linked.items()}
        links["mlflow.note.content"] = self._note(linked, children)
        self._tag(self._parent, {name: text for name, text in links.items() if parent.data.tags.get(name) != text})
        self._copy_headlines(linked, parent.data.metrics)

        states = {run.info.status for run in children.values()}
        status = next((state for state in ("RUNNING", "FAILED", "KILLED") if state in states), "FINISHED")
        if status == "RUNNING":
            self._client.update_run(self._parent, status=status)
        else:
            self._client.set_terminated(self._parent, status)

    def _made_earlier(self, children: Mapping[str, "Run"]) -> Iterator[tuple[str, "Run"]]:
        """For every stage whose inputs are as some finished run had them: its name and that run."""

        def outputs_of(name: str, key: str) -> Mapping[str, str] | None:
            own = children.get(name)
            if own and own.info.status == "FINISHED" and own.data.tags.get("wordmill.key") == key:
                self._makers[key] = own
            elif own and own.info.status != "FINISHED":
                return None  # what it will make is not known yet
            if key not in self._makers:
                query = f"tags.`wordmill.key` = '{key}' and attributes.status = 'FINISHED'"
                finished = self._search(query, limit=1)
                if not finished:
                    return None
                self._makers[key] = finished[0]
            outputs: Mapping[str, str] = json.loads(self._makers[key].data.tags.get("wordmill.outputs", "{}"))
            return outputs

        found = list(lineage.derived(lineage.declared(), lineage.document(), outputs_of))
        return ((name, self._makers[key]) for name, key in found if key in self._makers)

    def _note(self, linked: Mapping[str, "Run"], children: Mapping[str, "Run"]) -> str:
        lines = ["| stage | run | status | made |", "| --- | --- | --- | --- |"]
        for name, run in linked.items():
            when = f"{datetime.fromtimestamp(run.info.start_time / 1000).astimezone():%Y-%m-%d %H:%M:%S}"
            link = f"[{run.info.run_id[:8]}](#/experiments/{self._experiment}/runs/{run.info.run_id})"
            made = "in this rebuild" if name in children else f"earlier, {when}"
            lines.append(f"| {name} | {link} | {run.info.status} | {made} |")
        return "\n".join(lines)

    def _copy_headlines(self, linked: Mapping[str, "Run"], present: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        changed = [
            Metric(f"{stage}/{_safe(name)}", value, run.info.end_time or run.info.start_time, 0)
            for stage, run in linked.items()
            for name, value in json.loads(run.data.tags.get("wordmill.headlines", "{}")).items()
            if present.get(f"{stage}/{_safe(name)}") != value
        ]
        for first in range(0, len(changed), 1000):
            self._client.log_batch(self._parent, metrics=changed[first : first + 1000])

    def _bury(self, runs: list["Run"]) -> list["Run"]:
        """End the runs whose process is no more, and return the runs that are stages'."""
        for run in runs:
            tags = run.data.tags
            pid = tags.get("wordmill.pid", "")
            if run.info.status != "RUNNING" or tags.get("wordmill.host") != lineage.host() or not pid:
                continue
            dead = lineage.started(int(pid)) != tags.get("wordmill.started")
            if dead and (tags.get("wordmill.kind") == "stage" or not self._is_active(run.info.run_id)):
                self._client.set_terminated(run.info.run_id, "KILLED")
                run.info._status = "KILLED"
        return [run for run in runs if run.data.tags.get("wordmill.kind") == "stage"]

    def _is_active(self, parent: str) -> bool:
        """Whether a stage of a rebuild is running: the parent's own process ended with its first stage."""
        children = self._search(f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'")
        return any(
            lineage.started(int(run.data.tags["wordmill.pid"])) == run.data.tags["wordmill.started"]
            for run in children
            if run.data.tags.get("wordmill.host") == lineage.host()
        )

    def _search(self, query: str, limit: int = 1000) -> list["Run"]:
        order = ["attributes.start_time DESC"]
        return list(self._client.search_runs([self._experiment], query, max_results=limit, order_by=order))

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        entries = [Param(_safe(name), str(value)[:LONGEST_PARAM]) for name, value in params.items()]
        for first in range(0, len(entries), 100):
            self._client.log_batch(run_id, params=entries[first : first + 100])

    def _log_patch(self, run_id: str) -> None:
        patch, left_out = provenance.uncommitted()
        if patch:
            with tempfile.TemporaryDirectory() as folder:  # bytes: a changed file need not be UTF-8
                path = Path(folder) / "uncommitted.patch"
                path.write_bytes(patch)
                self._client.log_artifact(run_id, str(path), "code")
        if left_out:
            self._tag(run_id, {"git.left_out_of_patch": ", ".join(left_out)})

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(_safe(name), text[:LONGEST_TAG]) for name, text in tags.items()]
        for first in range(0, len(entries), 100):
            self._client.log_batch(run_id, tags=entries[first : first + 100])


def _fitting(values: Mapping[str, float]) -> str:
    """As JSON, as many as a tag holds (over a hundred); the stage's own run has them all."""
    kept = dict(values)
    while len(text := json.dumps(kept)) > LONGEST_TAG:
        kept.popitem()
    return text


def _safe(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Stages that run at the same time make one parent, and see each other's end."""
    LOCK.parent.mkdir(exist_ok=True)
    try:
        with FileLock(LOCK, timeout=30):
            yield
    except Timeout:
        raise Unavailable(f"{LOCK} is held by another stage for over 30 s") from None


if __name__ == "__main__":
    serve(StageRun)
