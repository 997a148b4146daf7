"""The deployments on a real Prefect server and agent, on loopback: what runs, what is cached, what is refused."""

import subprocess
import sys
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.workers.process import ProcessWorker

from benchmarks import prefect_server
from benchmarks.prefect_server import (
    UNFINISHED,
    ask,
    begin,
    cancel,
    program,
    rebuilding,
    send,
    state,
    until,
    worker,
)
from pipeline import overrides
from pipeline.deploy import TEMPLATE

STAGES = {"corpus", "pretrain", "preferences", "samples"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, quiet: dict[str, str]) -> Iterator[dict[str, str]]:
    """A server of its own; the environment in which everything talks to it."""
    home = tmp_path_factory.mktemp("prefect")
    environment = {
        **quiet,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
        "WORDMILL_RETRY_SECONDS": "0.1",
        "RAN_LOG": str(home / "ran.log"),
        "FLAKY": str(home / "flaky"),
        **{f"GIT_{who}_NAME": "t" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "t@example.org" for who in ("AUTHOR", "COMMITTER")},
    }
    with prefect_server.server(home, environment) as own:
        yield own


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, server: dict[str, str], make_checkout: Callable[[Path], Path]
) -> Iterator[Path]:
    """A checkout whose deployments are on the server, with an agent that runs them."""
    folder = make_checkout(tmp_path_factory.mktemp("deployed") / "checkout")
    for command in (["git", "add", "."], ["git", "commit", "-qm", "one"]):
        subprocess.run(command, cwd=folder, env=server, check=True)
    wordmill(folder, server, "deploy").check_returncode()
    with program([sys.executable, "-m", "pipeline.cli", "agent"], folder, server, folder / "runs.log"):
        yield folder


@dataclass(frozen=True)
class Run:
    """What a deployment's run came to."""

    state: str
    message: str
    tasks: dict[str, list[str]]  # name and type of the final state, by stage
    logs: list[str]
    page: str
    name: str


def deployed(server: dict[str, str], name: str, **parameters: Any) -> Run:
    """Start a deployment and wait for its end."""
    try:
        run_id = begin(server, name, parameters)
    except urllib.error.HTTPError as error:
        return Run("refused", error.read().decode(), {}, [], "", "")
    this = {"flow_runs": {"id": {"any_": [run_id]}}}
    logs: list[dict[str, Any]] = []

    def ended() -> bool:
        nonlocal logs
        if state(server, run_id)["type"] in UNFINISHED:
            return False
        logs = prefect_server.logs(server, run_id)
        # the last lines are delivered after the last state; the flow's own, not a task's
        return any("Finished in state" in log["message"] for log in logs if log["task_run_id"] is None)

    until(ended)
    run = ask(server, f"/flow_runs/{run_id}")
    tasks = ask(server, "/task_runs/filter", this)
    pages = ask(server, "/artifacts/filter", this | {"artifacts": {"type": {"any_": ["markdown"]}}})
    return Run(
        run["state"]["name"],
        run["state"]["message"],
        {task["name"]: [task["state"]["name"], task["state"]["type"]] for task in tasks},
        [log["message"] for log in logs],
        pages[0]["data"] if pages else "",
        run["name"],
    )


def ran(server: dict[str, str]) -> list[str]:
    """The stages that ran since this was last asked."""
    log = Path(server["RAN_LOG"])
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def row(page: str, figure: str) -> list[str]:
    """The cells of a page's table after the first."""
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {figure} |"))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_first_all_then_none_then_what_an_override_touches(server: dict[str, str], folder: Path) -> None:
    (folder / "params.yaml").write_text("an edit that no deployed run may see\n")
    Path(server["FLAKY"]).touch()  # the first stage fails once, for a reason that may pass
    run = deployed(server, "rebuild/manual")
    assert run.state == "Completed", run.logs
    assert "corpus: the network was away" in run.logs
    assert any("Retry 1/1" in line for line in run.logs)
    assert {name: state for name, (state, _) in run.tasks.items()} == dict.fromkeys(STAGES, "Completed")
    order = ran(server)
    assert (order[0], order[-1], set(order)) == ("corpus", "samples", STAGES)
    assert "made samples" in run.logs  # a stage's output is in the run's log
    assert row(run.page, "samples/temperature") == ["0.5", "", ""]
    assert "Once there was" in run.page

    run = deployed(server, "rebuild/nightly")
    assert run.state == "Completed"
    assert run.message.startswith("stages: 4 cached")
    assert run.tasks == {stage: ["Cached", "COMPLETED"] for stage in STAGES}
    assert row(run.page, "corpus")[0].startswith("Cached: ")
    assert ran(server) == []

    run = deployed(server, "rebuild/manual", overrides={"preferences.pairs": 20, "samples.top_k": 3})
    assert run.state == "Completed"
    assert {name: state for name, (state, _) in run.tasks.items()} == {
        "corpus": "Cached",
        "pretrain": "Cached",
        "preferences": "Completed",
        "samples": "Completed",
    }
    assert ran(server) == ["preferences", "samples"]
    assert row(run.page, "samples/top_k") == ["3", "0", "+3"]

    # The checkout and its edit are as they were; what was made comes back from the shared cache by its name.
    assert (folder / "params.yaml").read_text() == "an edit that no deployed run may see\n"
    assert not list((folder / "runs/worktrees").iterdir())
    assert not (folder / "preferences.out").exists()
    (folder / "params.yaml").write_bytes((folder / "presets/default.yaml").read_bytes())
    subprocess.run(
        ["dvc", "exp", "apply", f"manual-{run.name}"], cwd=folder, env=server, check=True, capture_output=True
    )
    assert "('pairs', 20)" in (folder / "preferences.out").read_text()
    subprocess.run(["git", "checkout", "-q", "."], cwd=folder, check=True)


def test_wrong_parameters_are_refused(server: dict[str, str], folder: Path) -> None:
    for wrong in ({"force": "perhaps"}, {"overrides": [1]}, {"stage_hours": "long"}, {"preset": 3}, {"from_stage": 1}):
        run = deployed(server, "rebuild/manual", **wrong)
        assert (run.state, run.tasks) == ("refused", {}), wrong

    run = deployed(server, "rebuild/manual", overrides={"samples.temperature": "hot"})
    assert (run.state, run.tasks) == ("Failed", {})
    assert "Traceback" not in "".join(run.logs) + (folder / "runs.log").read_text()
    assert run.message.startswith("overrides: samples.temperature: input should be a valid number")
    assert not list((folder / "runs/worktrees").iterdir())


def refusal(server: dict[str, str], path: str, content: Any, headers: dict[str, str], method: str = "") -> int:
    """The status with which the server refuses a request."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        send(server, path, content, headers, method)
    return caught.value.code


def test_a_page_of_another_origin_cannot_start_a_run(server: dict[str, str], folder: Path) -> None:
    deployment = ask(server, "/deployments/name/rebuild/manual")["id"]
    path, run = f"/deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}}
    assert refusal(server, path, run, {}) == 403  # no token: a page cannot read one
    token = send(server, "/csrf-token?client=page", None, {})["token"]
    own = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "page"}
    assert refusal(server, path, run, own | {"Origin": "http://evil.example"}) == 403
    assert refusal(server, path, run, own | {"Host": "evil.example:4200"}) == 403
    assert refusal(server, "/csrf-token?client=page", None, {"Origin": "http://evil.example"}) == 403
    assert refusal(server, "/admin/version", None, {"Host": "evil.example"}) == 403


def test_a_client_that_names_a_command_is_refused(server: dict[str, str], folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    command = {"command": f"touch {mark}"}
    deployment = ask(server, "/deployments/name/rebuild/manual")
    create = f"/deployments/{deployment['id']}/create_flow_run"
    for asked in (command, {"env": {"PYTHONSTARTUP": "x"}}, {"working_dir": "/"}, {"name": "x"}):
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(server, create, {"state": {"type": "SCHEDULED"}, "job_variables": asked})
        assert caught.value.code == 422

    # Whoever may write to the server may also open the pool again; the agent itself then refuses.
    open_to_all = ProcessWorker.get_default_base_job_template()
    ask(server, "/work_pools/gpu", {"base_job_template": open_to_all}, "PATCH")
    asked = {"job_variables": command, "state": {"type": "SCHEDULED"}}
    runs = {ask(server, create, asked)["id"]: "it sets command"}
    steps = [{"prefect.deployments.steps.run_shell_script": {"script": f"touch {mark}"}}]
    for name, changes, why in (
        ("steps", {"pull_steps": steps}, "its deployment has pull steps or a path"),
        ("entry", {"entrypoint": "os.system"}, "its entrypoint is 'os.system'"),
        ("variables", {"job_variables": command}, "it sets command"),
    ):
        own = {
            "name": name,
            "flow_id": deployment["flow_id"],
            "work_pool_name": "gpu",
            "enforce_parameter_schema": False,
        }
        made = ask(server, "/deployments/", own | {"entrypoint": deployment["entrypoint"]} | changes)
        run = ask(server, f"/deployments/{made['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
        runs[run["id"]] = why
    for run_id, why in runs.items():
        until(lambda run_id=run_id: state(server, run_id)["type"] not in UNFINISHED, 600)
        final = state(server, run_id)
        assert final["name"] == "Failed"
        assert final["message"].startswith(f"refused: {why}; an agent runs pipeline.flow.rebuild")
    assert not mark.exists()
    assert "Traceback" not in (folder / "runs.log").read_text()

    wordmill(folder, server, "deploy", "--missing").check_returncode()
    assert ask(server, "/work_pools/gpu")["base_job_template"] == TEMPLATE


def test_what_was_set_on_the_server_stays(server: dict[str, str], folder: Path) -> None:
    nightly = ask(server, "/deployments/name/rebuild/nightly")
    (schedule,) = nightly["schedules"]
    ask(server, "/work_pools/gpu", {"concurrency_limit": 3}, "PATCH")
    ask(server, f"/deployments/{nightly['id']}", {"paused": True}, "PATCH")
    ask(server, f"/deployments/{nightly['id']}/schedules/{schedule['id']}", {"active": False}, "PATCH")
    try:
        done = wordmill(folder, server, "deploy")
        assert done.stdout.splitlines()[-1].startswith("work pool gpu: at most 3 at a time; deployed rebuild/nightly, ")
        nightly = ask(server, "/deployments/name/rebuild/nightly")
        assert (nightly["paused"], [schedule["active"] for schedule in nightly["schedules"]]) == (True, [False])
        assert ask(server, "/work_pools/gpu")["concurrency_limit"] == 3
    finally:
        wordmill(folder, server, "deploy", "--at-once", "1").check_returncode()
        ask(server, f"/deployments/{nightly['id']}", {"paused": False}, "PATCH")
    assert ask(server, "/work_pools/gpu")["concurrency_limit"] == 1


def test_a_run_that_was_claimed_and_has_not_begun_is_given_back(server: dict[str, str], folder: Path) -> None:
    ask(server, "/work_pools/gpu", {"is_paused": True}, "PATCH")
    try:
        run_id = begin(server, "rebuild/manual", {})
        ask(server, f"/flow_runs/{run_id}/set_state", {"state": {"type": "PENDING"}, "force": True})
        (folder / "runs/agent/1-0.claims").write_text(f"{run_id}\n00000000-0000-0000-0000-000000000000\n")
        code = "from pipeline import agent; agent.give_back()"
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=server, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("had not begun and is scheduled again\n")
        assert state(server, run_id)["type"] == "SCHEDULED"
        assert not (folder / "runs/agent/1-0.claims").exists()
        ask(server, f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLED"}, "force": True})
    finally:
        ask(server, "/work_pools/gpu", {"is_paused": False}, "PATCH")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_cancelling_and_a_killed_worker_leave_nothing_running(server: dict[str, str], folder: Path) -> None:
    def training() -> str:
        run_id = begin(server, "rebuild/manual", {"overrides": {"samples.top_k": 14}})
        until(lambda: any((folder / "runs/worktrees").glob("*/waiting")), 120)
        assert len(rebuilding(folder)) >= 3
        return run_id

    cancelled = training()
    cancel(server, cancelled)
    until(lambda: not rebuilding(folder), 20)
    assert not list((folder / "runs/worktrees").iterdir())

    killed = training()  # so the first one does not block the pool
    assert state(server, cancelled)["name"] == "Cancelled"
    worker(folder).kill()
    until(lambda: not rebuilding(folder), 20)
    assert not list((folder / "runs/worktrees").iterdir())
    assert state(server, killed)["name"] == "Crashed"


def wordmill(folder: Path, server: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=server, capture_output=True, text=True, timeout=600)


def test_wordmill_run_tells_the_stage_that_failed(
    server: dict[str, str], tmp_path: Path, make_checkout: Callable[[Path], Path]
) -> None:
    folder = make_checkout(tmp_path / "checkout")
    ran(server)
    done = wordmill(folder, server, "run", "--set", "samples.top_k=13")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "wordmill: samples: top_k: 13 is bad luck; use 12"
    assert "Traceback" not in done.stderr
    assert "Retry" not in done.stdout + done.stderr  # a mistake stays one
    assert set(ran(server)) == STAGES - {"samples"}
    assert (folder / "params.yaml").read_bytes() == (folder / "presets/default.yaml").read_bytes()


def test_two_rebuilds_of_one_checkout(checkout: Path, quiet: dict[str, str]) -> None:
    with overrides.sole_rebuild():
        done = wordmill(checkout, quiet, "run")
    assert done.returncode == 2
    assert done.stderr == "wordmill: another rebuild runs in this folder; wait for it, or stop it, and try again\n"
