"""What a Prefect server needs to know of this project: `wordmill deploy`, as often as wanted.

- The work pool, with a limit of one run at a time.
- An automation against runs that nobody runs any more. A machine that goes down, or a killed worker whose flow was
  killed too, leaves a run "Running" for ever, and a pool with a limit would never start another. Agents have their
  flows send heartbeats; after a run's last one, another or an end is expected within two minutes, else the run becomes
  Crashed.
- The deployments in prefect.yaml.
"""

import os
import subprocess
import sys
from datetime import timedelta

from llm.errors import WordmillError
from pipeline import agent

SILENCE = timedelta(seconds=120)  # four heartbeats; one or two can be late on a busy machine
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDS = ("Completed", "Failed", "Cancelled", "Crashed")
SILENT = "no heartbeat for two minutes"
AUTOMATION = "Runs without a heartbeat have crashed"


def deploy(pool: str, at_once: int) -> None:
    """Make or renew pool, automation and deployments. Raises WordmillError."""
    os.environ.update(agent.settings())
    agent.wait_for_server()
    _pool(pool, at_once)
    _automation()
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise WordmillError(f"prefect deploy: {' '.join((done.stderr or done.stdout).split())[-500:]}")


def _pool(name: str, at_once: int) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    with get_client(sync_client=True) as client:
        try:
            found = client.read_work_pool(name)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(
                WorkPoolCreate(name=name, type="process", base_job_template=template, concurrency_limit=at_once)
            )
            return
        if found.type != "process":
            raise WordmillError(f"the work pool {name} is of type {found.type}; name another one, or delete it")
        client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=at_once))


def _automation() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    wanted = AutomationCore(
        name=AUTOMATION,
        description="After a heartbeat, another one or an end within two minutes; without it the run is Crashed.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{end}" for end in ENDS)},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=SILENT, force=True)],
    )
    with get_client(sync_client=True) as client:
        present = client.read_automations_by_name(AUTOMATION)
        if present:
            client.update_automation(present[0].id, wanted)
        else:
            client.create_automation(wanted)
