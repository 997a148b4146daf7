"""The agent's Prefect worker: it runs rebuilds of its own checkout, and nothing else that a server may ask for.

A Prefect server has no rights of its own to give: whoever reaches it may create deployments, change the work pool, and
name a command, an environment or a folder for a run. Prefect's worker takes all of that from the server. This one takes
the run's id. It starts `pipeline.engine` in the environment of the agent, and that runs the flow `rebuild`. A run that
asks for anything else is refused: it fails with a line that says what was asked for.

What it has claimed stands in a file beside the checkout's other state, so that an agent that stops can give runs back
that have not begun (`pipeline.agent`).
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.abc
from prefect.flows import Flow
from prefect.settings import get_current_settings
from prefect.states import Failed
from prefect.utilities.engine import propose_state
from prefect.utilities.processutils import command_to_string
from prefect.workers import process

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

ENTRYPOINT = "pipeline.flow.rebuild"
ENGINE = command_to_string([sys.executable, "-m", "pipeline.engine"])


async def _own_flow(flow_run: "FlowRun") -> Flow[Any, Any]:
    """The flow whose hooks Prefect asks for: this checkout's, not the one that the deployment names."""
    from pipeline.flow import rebuild

    return rebuild


process.load_flow_from_flow_run = _own_flow  # type: ignore[assignment]


class Worker(process.ProcessWorker):
    """Prefect's process worker, with the command, environment and folder of each run its own."""

    @classmethod
    def __dispatch_key__(cls) -> str:
        return "wordmill"  # so that `prefect worker start` goes on to mean Prefect's own

    def __init__(self, pool: str, claims: Path) -> None:
        super().__init__(work_pool_name=pool)
        self._claims = claims

    async def get_and_submit_flow_runs(self) -> list["FlowRun"]:
        """Claim the runs that are due."""
        claimed = await super().get_and_submit_flow_runs()
        if claimed:
            with self._claims.open("a", encoding="utf-8") as file:
                file.writelines(f"{run.id}\n" for run in claimed)
        return claimed

    async def run(
        self,
        flow_run: "FlowRun",
        configuration: process.ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> process.ProcessWorkerResult:
        """Start a rebuild, or refuse what is none."""
        problem = await self._problem(flow_run, configuration)
        if problem:
            message = f"refused: {problem}; an agent runs {ENTRYPOINT} of its own checkout and nothing else"
            self.get_flow_run_logger(flow_run).error(message)
            await propose_state(self.client, Failed(message=message), flow_run_id=flow_run.id)
            if task_status:
                task_status.started(0)
            return process.ProcessWorkerResult(status_code=0, identifier="refused")
        configuration.command = ENGINE
        configuration._command_configured = True
        configuration.working_dir = None
        configuration.env = {**os.environ, **_environment(flow_run)}
        return await super().run(flow_run, configuration, task_status)

    async def _problem(self, flow_run: "FlowRun", configuration: process.ProcessJobConfiguration) -> str | None:
        """What a run asks for that an agent does not give; None where there is nothing."""
        if flow_run.deployment_id is None:
            return "it belongs to no deployment"
        deployment = await self.client.read_deployment(flow_run.deployment_id)
        if asked := {**deployment.job_variables, **(flow_run.job_variables or {})}:
            return f"it sets {', '.join(sorted(map(str, asked)))}"
        if deployment.entrypoint != ENTRYPOINT:
            return f"its entrypoint is {deployment.entrypoint!r}"
        if deployment.pull_steps or deployment.path:
            return "its deployment has pull steps or a path"
        if configuration._command_configured or configuration.working_dir:
            return "its work pool sets a command or a folder; run `wordmill deploy`"
        return None


def _environment(flow_run: "FlowRun") -> dict[str, str]:
    """What Prefect's process of a run finds of it in the environment."""
    known = get_current_settings().to_environment_variables(exclude_unset=True)
    return {**known, "PREFECT__FLOW_RUN_ID": str(flow_run.id)}


def main(pool: str, claims: Path) -> None:
    """Work for `pool` until the process is ended."""
    asyncio.run(Worker(pool, claims).start(printer=lambda line: print(f"agent: {line}", flush=True)))
