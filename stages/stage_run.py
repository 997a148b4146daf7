"""The run of one stage in MLflow, and the parent run of its rebuild, kept up to date by the process beside the stage.

The first event, the header, gets all that describes the moment (commit, changes, packages, machine, the pipeline's
files) before the store is first asked, so that a run that could not be delivered is delivered later as it was
(`stages.delivery`).
"""

import base64
import contextlib
import getpass
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from stages import lineage, processes, provenance, registry
from stages.mailbox import Event, Unavailable
from stages.store import check_shared_disk, client, every, experiment_id, reachable
from stages.system_metrics import Sampler
from stages.tracking_uri import PAGES, experiment_name
from stages.uncommitted import uncommitted

if TYPE_CHECKING:
    from mlflow.entities import Run

LOCK = Path("runs/tracking.lock")
FILES = (lineage.PARAMS, lineage.PIPELINE, Path("dvc.lock"))
PAGE = 1000  # runs
LONGEST_PARAM = 6000  # characters; MLflow's own limits
LONGEST_TAG = 8000
LONGEST_DIGEST = 36
LEFT_OUT = "code/left_out.json"  # artifact: SHA-256 by path of what is in no commit and in no patch
TOO_LATE = "gone or changed before it was delivered"
PREFECT = "prefect-"  # the beginning of a rebuild's name in a Prefect flow run; its id follows


class StageRun:
    """A stage's run in the store; it lives in the process beside it. Its constructor makes it, `deliver` fills it.

    `late` is for a stage that has ended: its run may be there already, in part, and what can no longer be known of the
    moment is left out.
    """

    def __init__(self, start: dict[str, Any], uri: str, late: bool = False) -> None:
        self._uri = uri
        if "moment" not in start:
            start["moment"] = moment()
        self._moment: Mapping[str, Any] = start["moment"]
        self._start = start
        self._late = late
        self._stage: str = start["stage"]
        self._makers: dict[str, Run] = {}  # finished runs by stage key
        with reachable(self._uri, starting=True), _locked():
            self._client = client(self._uri)
            self._experiment = experiment_id(self._client, self._uri, self._moment["experiment"])
            self._bury(self._search(f"attributes.status = 'RUNNING' and tags.`wordmill.host` = '{processes.host()}'"))
            self._parent = self._find_parent()
            self._run_id = (late and self._find_own()) or self._new_run(
                self._stage,
                {
                    "mlflow.parentRunId": self._parent,
                    "mlflow.source.name": f"stages.{self._stage}",
                    "wordmill.kind": "stage",
                    "wordmill.stage": self._stage,
                    "wordmill.key": lineage.key(self._stage, start["params"], start["inputs"]),
                    "wordmill.fingerprint": start["fingerprint"],
                    **{f"hardware.{name}": value for name, value in self._moment["hardware"].items()},
                },
            )
            self._log_params(self._run_id, start["params"])
            self._client.log_text(self._run_id, json.dumps(start["inputs"], indent=2), "lineage/inputs.json")
            self._client.log_text(self._run_id, self._moment["packages"], "environment/packages.txt")
            if "dvc.lock" in self._moment["files"]:
                self._client.log_text(self._run_id, self._moment["files"]["dvc.lock"], "lineage/dvc.lock")
            self._log_patch(self._run_id)
            self._update_parent()
        self._sampler = None if late else Sampler(int(start["pid"]))

    def deliver(self, events: Sequence[Event]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

        if self._sampler:
            ends = any(event["kind"] == "end" for event in events)
            events = [*self._sampler.taken(last=ends), *events]
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
                        if self._late and lineage.modified(path) != event["modified"]:
                            self._tag(self._run_id, {f"not_kept.{path.name}": TOO_LATE})
                        elif path.is_dir():
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
                    case "text":
                        self._client.log_text(self._run_id, event["text"], event["path"])
                    case "model" if self._late and lineage.modified(Path(event["path"])) != event["modified"]:
                        self._tag(self._run_id, {"not_kept.model": TOO_LATE})
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

    def _find_parent(self) -> str:
        mine = self._search(
            f"tags.`wordmill.kind` = 'rebuild' and tags.`wordmill.rebuild` = '{self._start['rebuild']}'"
        )
        if mine:
            return str(mine[0].info.run_id)
        # MLflow's table shows some 20 characters of a name: the day and the time must be among them.
        name = f"rebuild {datetime.fromtimestamp(self._start['time'] / 1000).astimezone():%m-%d %H:%M:%S}"
        sweep = {"mlflow.parentRunId": self._moment["sweep"]} if self._moment["sweep"] else {}
        parent = self._new_run(name, {"mlflow.source.name": "dvc.yaml", "wordmill.kind": "rebuild", **sweep})
        texts = self._moment["files"]
        self._log_params(parent, lineage.flat(lineage.parsed(texts.get("params.yaml", ""))))
        for path in ("params.yaml", "dvc.yaml"):
            if path in texts:
                self._client.log_text(parent, texts[path], path)
        self._log_patch(parent)
        return parent

    def _find_own(self) -> str | None:
        """The run that this very process made before its store went away."""
        tags = {"wordmill.stage": self._stage, **{f"wordmill.{name}": self._start[name] for name in ("pid", "started")}}
        found = self._search(" and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items()))
        mine = [run for run in found if run.data.tags.get("wordmill.host") == self._moment["host"]]
        return str(mine[0].info.run_id) if mine else None

    def _new_run(self, name: str, tags: Mapping[str, str]) -> str:
        own = {
            "wordmill.rebuild": self._start["rebuild"],
            "wordmill.host": self._moment["host"],
            "wordmill.pid": self._start["pid"],
            "wordmill.started": self._start["started"],
            "mlflow.source.type": "LOCAL",
        }
        if self._moment["user"]:
            own["mlflow.user"] = self._moment["user"]
        if self._moment["commit"]:
            own["mlflow.source.git.commit"] = self._moment["commit"]
        if self._start["rebuild"].startswith(PREFECT):
            own["prefect.flow_run_id"] = self._start["rebuild"].removeprefix(PREFECT)
        run = self._client.create_run(self._experiment, self._start["time"], {**own, **tags}, name)
        check_shared_disk(self._client, self._uri, run)
        return str(run.info.run_id)

    def _update_parent(self) -> None:
        """Set the parent's status, links and metrics from its children and from the runs that made the rest."""
        children: dict[str, Run] = {}  # the newest of each stage: one that failed may have been run again
        for run in self._bury(self._search(f"tags.`mlflow.parentRunId` = '{self._parent}'")):
            children.setdefault(run.data.tags["wordmill.stage"], run)
        # Of a stage that has ended, what others made for it cannot be told from what is on disk now.
        earlier = () if self._late else self._made_earlier(children)
        linked = children | {name: run for name, run in earlier if name not in children}
        order = [stage.name for stage in lineage.declared()]
        linked = {name: linked[name] for name in sorted(linked, key=lambda n: order.index(n) if n in order else -1)}

        parent = self._client.get_run(self._parent)
        links = {f"stage.{name}": run.info.run_id for name, run in linked.items()}
        if not self._late or "mlflow.note.content" not in parent.data.tags:
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
            link = f"[{run.info.run_id[:8]}](#/experiments/{self._experiment}/runs/{run.info.run_id}?{PAGES})"
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
            if run.info.status != "RUNNING" or tags.get("wordmill.host") != processes.host() or not pid:
                continue
            dead = processes.started(int(pid)) != tags.get("wordmill.started")
            if dead and (tags.get("wordmill.kind") == "stage" or not self._is_active(run.info.run_id)):
                self._client.set_terminated(run.info.run_id, "KILLED")
                run.info._status = "KILLED"
        return [run for run in runs if run.data.tags.get("wordmill.kind") == "stage"]

    def _is_active(self, parent: str) -> bool:
        """Whether a stage of a rebuild is running: the parent's own process ended with its first stage."""
        children = self._search(f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'")
        return any(
            processes.started(int(run.data.tags["wordmill.pid"])) == run.data.tags["wordmill.started"]
            for run in children
            if run.data.tags.get("wordmill.host") == processes.host()
        )

    def _search(self, query: str, limit: int | None = None) -> list["Run"]:
        """The newest first: all of them, or so many."""
        order = ["attributes.start_time DESC"]

        def page(token: str | None) -> Any:
            size = min(limit or PAGE, PAGE)
            return self._client.search_runs([self._experiment], query, 1, size, order, token)

        return list(itertools.islice(every(page), limit))

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        entries = [Param(_safe(name), str(value)[:LONGEST_PARAM]) for name, value in params.items()]
        for first in range(0, len(entries), 100):
            self._client.log_batch(run_id, params=entries[first : first + 100])

    def _log_patch(self, run_id: str) -> None:
        if patch := base64.b64decode(self._moment["patch"]):
            with tempfile.TemporaryDirectory() as folder:  # bytes: a changed file need not be UTF-8
                path = Path(folder) / "uncommitted.patch"
                path.write_bytes(patch)
                self._client.log_artifact(run_id, str(path), "code")
        if left_out := self._moment["left_out"]:
            self._client.log_text(run_id, json.dumps(left_out, indent=2), LEFT_OUT)
            self._tag(run_id, {"git.left_out_of_patch": f"{len(left_out)} files, see {LEFT_OUT}"})

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(_safe(name), text[:LONGEST_TAG]) for name, text in tags.items()]
        for first in range(0, len(entries), 100):
            self._client.log_batch(run_id, tags=entries[first : first + 100])


def moment() -> dict[str, Any]:
    """All that a run tells of the moment in which it began, as plain data."""
    patch, left_out = uncommitted()
    user = None
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        user = getpass.getuser()
    return {
        "experiment": experiment_name(),
        "commit": provenance.commit(),
        "patch": base64.b64encode(patch).decode(),
        "left_out": left_out,
        "packages": provenance.packages(),
        "hardware": provenance.hardware(),
        "host": processes.host(),
        "sweep": os.environ.get("WORDMILL_SWEEP", ""),  # the run that this rebuild is a point of
        "user": user,
        "files": {str(path): path.read_text(encoding="utf-8") for path in FILES if path.exists()},
    }


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
