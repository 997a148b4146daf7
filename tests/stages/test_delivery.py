"""A store that is down, silent or gone: the stage goes on, and what it told arrives later."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from stages import delivery, tracking
from stages.mailbox import Unavailable, now
from stages.tracking import Tracker
from tests.stages.mlflow_server import server
from tests.stages.test_tracking import runs, wait_for


def kept() -> list[dict[str, Any]]:
    (path,) = Path("runs/undelivered").iterdir()
    return [json.loads(line) for line in path.read_text().splitlines()]


def as_of_a_stage_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stage leaves is delivered once its process is no more, and here that is the test's own."""
    monkeypatch.setattr(tracking.processes, "started", lambda pid: "0")


def test_server_that_is_down_costs_a_warning_and_gets_all_of_it_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], store: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Path("params.yaml").write_text("dpo: {beta: 0.1}\n")
    Path("whole.txt").write_text("as it was")
    os.utime("whole.txt", (2**32, 2**32))  # by a clock that was put right since
    Path("edited.txt").write_text("as it was")
    with monkeypatch.context() as patch:
        as_of_a_stage_that_has_ended(patch)
        tracker = Tracker("dpo", {"dpo.beta": 0.1}, {"in": "ab"}, "k")
    with socket.socket() as unused:  # bound and not listening: the connection is refused
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        uri = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with tracker:
            tracker.artifact(Path("whole.txt"))
            tracker.artifact(Path("edited.txt"))
            tracker.metrics({"loss": 1.0}, step=7)
            time.sleep(0.3)
            tracker.metrics({"loss": 0.5}, step=8)
    assert "tracking is off for the rest of this stage: http://127.0.0.1:" in capfd.readouterr().err
    events = kept()
    assert events[0]["params"] == {"dpo.beta": 0.1}
    assert [(e["step"], e["values"]) for e in events if e["kind"] == "metrics"] == [
        (7, {"loss": 1.0}),
        (8, {"loss": 0.5}),
    ]
    assert events[-1]["status"] == "FINISHED"
    with pytest.raises(Unavailable):
        delivery.deliver_kept(uri, print)

    # The server is there, and the folder has gone on.
    Path("params.yaml").write_text("dpo: {beta: 0.9}\n")
    Path("edited.txt").write_text("later")
    with server(port, store, folder):
        told: list[str] = []
        assert delivery.deliver_kept(uri, told.append) == 1
        assert told == [f"dpo: 5 events that were kept are now in {uri}"]
        assert delivery.deliver_kept(uri, told.append) == 0
        (child,), (parent,) = runs("stage"), runs("rebuild")
        assert (child.info.status, parent.info.status) == ("FINISHED", "FINISHED")
        assert child.info.start_time == events[0]["time"]
        assert child.info.end_time == events[-1]["time"]
        assert parent.data.params == {"dpo.beta": "0.1"}  # those of then
        client = MlflowClient(uri)
        history = client.get_metric_history(child.info.run_id, "loss")
        assert [(m.step, m.value) for m in history] == [(7, 1.0), (8, 0.5)]
        names = {entry.path for entry in client.list_artifacts(child.info.run_id)}
        assert "whole.txt" in names
        assert "edited.txt" not in names
        assert child.data.tags["not_kept.edited.txt"].startswith("gone or changed")
    assert not list(Path("runs/undelivered").iterdir())


def test_store_that_never_answers_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with Tracker("dpo", {}, {}, "k") as tracker:
            tracker.metrics({"loss": 1.0})
        assert time.monotonic() - began < 100
        assert [event["kind"] for event in kept()] == ["start", "metrics", "end"]
        # The next one does not wait so long again.
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
        monkeypatch.setattr(tracking, "AFTER_FAILURE", 0.5)
        began = time.monotonic()
        with Tracker("samples", {}, {}, "k"):
            pass
        assert time.monotonic() - began < 100


def test_a_delivery_that_hangs_stops_nobody(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With more events than a pipe takes."""
    monkeypatch.setattr(tracking, "PATIENCE", -4.5)  # to which come the 5 s that the process has for it
    with Tracker("dpo", {}, {}, "k") as tracker:
        tracker._mailbox._process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        for step in range(10_000):
            tracker.metrics({"loss": 1.0}, step=step)
        assert time.monotonic() - began < 100
    assert "the tracking process ended with status -9" in capfd.readouterr().err
    start, *events, end = kept()
    assert (start["kind"], end["kind"]) == ("start", "end")
    assert [event["step"] for event in events] == list(range(10_000 - len(events), 10_000))
    assert len(events) > 5_000


def test_store_that_goes_away_in_the_middle(folder: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    with sqlite3.connect(store.removeprefix("sqlite:///")) as source, sqlite3.connect("gone.db") as copy:
        source.backup(copy)
    copy.close()
    source.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/gone.db")
    with monkeypatch.context() as patch:
        as_of_a_stage_that_has_ended(patch)
        tracker = Tracker("dpo", {}, {}, "k")
    with tracker:
        wait_for(lambda: len(runs("stage")) == 1)
        tracker.metrics({"loss": 1.0}, step=1)
        wait_for(lambda: runs("stage")[0].data.metrics == {"loss": 1.0})
        with sqlite3.connect("gone.db") as source, sqlite3.connect("before.db") as copy:
            source.backup(copy)
        copy.close()
        source.close()
        for path in folder.glob("gone.db*"):
            path.unlink()
        (folder / "gone.db").write_text("no database")
        tracker.metrics({"loss": 0.5}, step=2)
    assert [event.get("values") for event in kept() if event["kind"] == "metrics"] == [{"loss": 0.5}]

    monkeypatch.setattr(tracking, "AFTER_FAILURE", 180.0)
    # It is back, as it was; the next stage delivers the rest into the run that was begun.
    (folder / "gone.db").unlink()
    shutil.copy("before.db", "gone.db")
    with Tracker("dpo", {}, {}, "k"):
        pass
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/./gone.db")  # to this process a file not yet open
    first, second = runs("stage")
    assert (first.info.status, second.info.status) == ("FINISHED", "FINISHED")
    history = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_metric_history(first.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]
    assert not list(Path("runs/undelivered").glob("*.jsonl"))


DAMAGES: dict[str, bytes] = {
    "empty": b"",
    "binary": bytes(range(256)) * 9,
    "a list": b"[1, 2]\n",
    "cut in its header": b'{"kind": "start", "sta',
    "no header": b'{"kind": "metrics", "time": 1, "values": {"loss": 1.0}, "step": 1}\n',
    "a number that is none": b'{"pid": "many"}',
    "no address": b'{"uri": null}',
    "values that are no numbers": b'{"kind": "metrics", "time": 1, "values": {"loss": "low"}, "step": 1}\n',
    "an event without its content": b'{"kind": "artifact", "time": 1}\n',
    "a name that the store refuses": b'{"kind": "text", "time": 1, "path": "../../outside", "text": "a"}\n',
}


def test_one_damaged_file_holds_back_no_other(direct: None, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    header: dict[str, Any] = {
        "kind": "start",
        "stage": "dpo",
        "params": {},
        "inputs": {},
        "fingerprint": "k",
        "rebuild": "first",
        "pid": "1",
        "started": "1",
        "time": now(),
        "uri": store,
    }
    delivery.UNDELIVERED.mkdir(parents=True)
    for number, (name, content) in enumerate(DAMAGES.items()):
        text = json.dumps(header | {"stage": name}).encode()
        if content.startswith((b'{"pid"', b'{"uri"')):
            content = json.dumps({**header, **json.loads(content)}).encode()
        elif content.startswith(b'{"kind": "') and name not in ("cut in its header", "no header"):
            content = text + b"\n" + content
        (delivery.UNDELIVERED / f"{number}.jsonl").write_bytes(content)
    (delivery.UNDELIVERED / "folder.jsonl").mkdir()
    (delivery.UNDELIVERED / "gone.jsonl").symlink_to("nowhere")  # as a file that another stage delivers meanwhile
    good = json.dumps(header) + "\n"
    good += '{"kind": "metrics", "time": 5, "values": {"loss": 1.0}, "step": 1}\nrubbish\n'
    good += '{"kind": "metrics", "time": 6, "values": {"loss": 0.5}, "step": 2}\n{"kind": "met'
    (delivery.UNDELIVERED / "last.jsonl").write_text(good)

    assert delivery.are_kept(store)
    told: list[str] = []
    assert delivery.deliver_kept(store, told.append) == 1
    run = next(run for run in runs("stage") if run.info.run_name == "dpo")
    history = MlflowClient(store).get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5)]
    assert run.info.status == "KILLED"  # it has no end: the machine went down as it was written
    assert told[-1].endswith("last.jsonl: 1 damaged lines were left out")
    assert len(told) == len(DAMAGES) + 3
    for line in told[: len(DAMAGES) + 1]:
        assert "not delivered: " in line
        assert line.endswith("mend it and rename it back, or remove it")
        assert "\n" not in line
    assert len(list(delivery.UNDELIVERED.glob("*.damaged"))) == len(DAMAGES) + 1  # nothing is lost

    told.clear()
    assert delivery.deliver_kept(store, told.append) == 0
    assert told == []
    assert not delivery.are_kept(store)


def test_a_kept_file_holds_no_password(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://me:open-sesame@127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with Tracker("dpo", {}, {}, "k"):
            pass
    (path,) = Path("runs/undelivered").iterdir()
    assert "open-sesame" not in path.read_text()
    assert delivery.are_kept(uri)
