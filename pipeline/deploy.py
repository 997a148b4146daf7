"""What a Prefect server needs to know of this project: `wordmill deploy`, as often as wanted.

- The work pool. A new one runs one rebuild at a time. Its template takes no variables, so the server refuses a run that
  names a command, an environment or a folder (an agent refuses it too: `pipeline.worker`).
- Two automations against runs that nobody runs any more. A machine that goes down, or a killed worker whose flow was
  killed too, leaves a run "Running" or "Pending" for ever, and a pool with a limit would never start another. Flows
  send heartbeats. After one, another or an end is expected within two minutes. A run that an agent has claimed is
  expected to begin within ten minutes. Else the run becomes Crashed.
- The deployments in prefect.yaml.

What was set on the server stays: a pool's limit, a paused pool, deployment, schedule or automation.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from llm.errors import WordmillError
from pipeline import agent

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import AutomationCore

FLOW = "rebuild"
TEMPLATE: dict[str, Any] = {
    "job_configuration": {"stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}
SILENCE = timedelta(seconds=120)  # four heartbeats; one or two can be late on a busy machine
BEGINNING = timedelta(minutes=10)  # from an agent's claim to the flow's first line: seconds, some 20 on a busy machine
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDS = ("Completed", "Failed", "Cancelled", "Crashed")
GIVEN_UP = ("Scheduled", "Late", "AwaitingRetry", "Cancelling", "Paused", "Suspended")  # it waits for nobody


def deploy(pool: str, at_once: int | None, missing: bool = False) -> str:
    """Make or renew pool, automations and deployments; what there is now, in a line. Raises WordmillError.

    `at_once` is the pool's limit. None leaves it as it is; a new pool then has 1. With `missing`, deployments that the
    server has are left as they are.
    """
    os.environ.update(agent.settings())
    agent.wait_for_server()
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        limit = _pool(client, pool, at_once)
        for automation in _automations():
            _automate(client, automation)
        present = _deployments(client)
        names = [name for name in _declared() if not (missing and name in present)]
        if names:
            _prefect_deploy(names)
            _keep_paused(client, present.values())
    runs = "without a limit" if limit is None else f"at most {limit} at a time"
    done = f"deployed {', '.join(f'{FLOW}/{name}' for name in names)}" if names else "all deployments are there"
    return f"work pool {pool}: {runs}; {done}"


def _declared() -> list[str]:
    content = YAML(typ="safe", pure=True).load(Path("prefect.yaml"))
    return [str(deployment["name"]) for deployment in content["deployments"]]


def _prefect_deploy(names: Iterable[str]) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy"]
    for name in names:
        command += ["--name", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WordmillError(f"prefect deploy: {' '.join((done.stderr or done.stdout).split())[-500:]}")


def _deployments(client: "SyncPrefectClient") -> dict[str, "DeploymentResponse"]:
    """The flow's deployments on the server, by name."""
    from prefect.exceptions import ObjectNotFound

    found = {}
    for name in _declared():
        try:
            found[name] = client.read_deployment_by_name(f"{FLOW}/{name}")
        except ObjectNotFound:
            continue
    return found


def _keep_paused(client: "SyncPrefectClient", before: Iterable["DeploymentResponse"]) -> None:
    """Pause again what was paused before: Prefect makes everything active that it deploys."""
    from prefect.client.schemas.actions import DeploymentUpdate

    for old in before:
        if old.paused:
            client.update_deployment(old.id, DeploymentUpdate(paused=True))
        inactive = [schedule.schedule for schedule in old.schedules if not schedule.active]
        for schedule in client.read_deployment(old.id).schedules:
            if schedule.active and schedule.schedule in inactive:
                client.update_deployment_schedule(old.id, schedule.id, active=False)


def _pool(client: "SyncPrefectClient", name: str, at_once: int | None) -> int | None:
    """Make the pool, or close it to variables; its limit."""
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        new = WorkPoolCreate(name=name, type="process", base_job_template=TEMPLATE, concurrency_limit=at_once or 1)
        return client.create_work_pool(new).concurrency_limit
    if found.type != "process":
        raise WordmillError(f"the work pool {name} is of type {found.type}; name another one, or delete it")
    limit = found.concurrency_limit if at_once is None else at_once
    client.update_work_pool(name, WorkPoolUpdate(base_job_template=TEMPLATE, concurrency_limit=limit))
    return limit


def _automations() -> list["AutomationCore"]:
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    def crashed(name: str, why: str, after: set[str], expect: set[str], within: timedelta) -> AutomationCore:
        return AutomationCore(
            name=name,
            description=f"{name}: {why}.",
            trigger=EventTrigger(
                after=after,
                expect=expect,
                match={"prefect.resource.id": "prefect.flow-run.*"},
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=within,
            ),
            actions=[ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=why, force=True)],
        )

    def states(names: Iterable[str]) -> set[str]:
        return {f"prefect.flow-run.{name}" for name in names}

    return [
        crashed(
            "Runs without a heartbeat have crashed",
            "no heartbeat for two minutes",
            {HEARTBEAT},
            {HEARTBEAT, *states(ENDS)},
            SILENCE,
        ),
        crashed(
            "Runs that an agent claimed and never began have crashed",
            "an agent claimed it ten minutes ago and it has not begun",
            states(["Pending", "Submitting"]),
            {HEARTBEAT, *states(["Running", *ENDS, *GIVEN_UP])},
            BEGINNING,
        ),
    ]


def _automate(client: "SyncPrefectClient", wanted: "AutomationCore") -> None:
    present = client.read_automations_by_name(wanted.name)
    if present:
        wanted.enabled = present[0].enabled
        client.update_automation(present[0].id, wanted)
    else:
        client.create_automation(wanted)
