"""The Prefect flow `rebuild`: a task per DVC stage, in the order of DVC's own graph.

DVC decides what has to run; Prefect shows it, schedules it and runs independent stages at the same time. A stage that
DVC skips is a task in the state Cached. Parameters are checked against the whole schema before any stage starts.

By hand (`wordmill run`) it works in the folder that it is called in, and params that differ from params.yaml are put
there for the time of the rebuild (`pipeline.overrides`). Deployed, it works in a worktree of the commit that it is
asked for (`pipeline.worktree`), in the checkout of the agent that runs it (`pipeline.agent`).

Whatever ends the flow (cancelling, SIGTERM, the end of its agent) first stops the stages that run, which write their
checkpoints. Mistakes end it in the state Failed with one line and no traceback: a traceback means a bug.
"""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State, TaskRun
from prefect.client.schemas.objects import StateDetails
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed, Crashed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import Task

from llm.errors import WordmillError
from pipeline import agent, dvc, page, plan
from pipeline.worktree import Worktree, worktree
from stages.tracking_uri import tracking_uri

STAGES_AT_ONCE = 8
RETRY_SECONDS = "WORDMILL_RETRY_SECONDS"  # in the environment, as in 30,120,300: before each new try of a stage that
PAUSES = "30,120,300"  # failed for a reason that may pass
NAME = "WORDMILL_REBUILD"  # in the environment of the stages: by it they find one MLflow parent
PATIENCE = dvc.GRACE + 5.0  # seconds for the stages to stop


@flow(
    name="rebuild",
    description="Brings every output up to date: runs what has changed, and nothing else.",
    task_runner=cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=STAGES_AT_ONCE)),
)
def rebuild(
    overrides: dict[str, Any] | None = None,
    preset: str | None = None,
    force: bool = False,
    from_stage: str | None = None,
    until_stage: str | None = None,
    commit: str | None = None,
    stage_hours: float | None = None,
) -> State[Any]:
    """Bring every output up to date.

    `overrides` are params for this rebuild alone, such as {"pretrain.steps": 200}; `preset` names a file in presets/
    to take in the place of params.yaml; `force` runs stages that have not changed, too. `from_stage` leaves out what
    comes before that stage, `until_stage` what that stage does not need. `commit` (a commit, branch or tag) asks for a
    checkout of its own. `stage_hours` is the longest that one stage may take.
    """
    try:
        if stage_hours is not None and stage_hours <= 0:
            raise WordmillError(f"stage_hours: {stage_hours:g} is no time; use a positive number of hours")
        with _workplace(commit, preset, overrides or {}) as place:
            graph = dvc.graph()
            wanted = dvc.between(graph, from_stage, until_stage)
            dvc.check_inputs(graph, wanted)
            work = Work(f"prefect-{flow_run.get_id()}", force, stage_hours, place.environment if place else {})
            states = _stages(graph, wanted, work)
            good = all(state.is_completed() for state in states.values())
            saved = place.save(f"{deployment.name or 'run'}-{flow_run.name}", wanted) if place and good else None
            store = work.environment.get("MLFLOW_TRACKING_URI") or tracking_uri()
            page.publish(states, work.name, store, saved, complete=good and len(wanted) == len(graph))
            return _outcome(states, saved)
    except WordmillError as error:
        return Failed(message=str(error))
    except agent.AgentGoneError as error:
        return Crashed(message=str(error))


@contextlib.contextmanager
def _workplace(commit: str | None, preset: str | None, overrides: dict[str, Any]) -> Iterator[Worktree | None]:
    """The working directory with params.yaml as asked for; a worktree if a commit is."""
    agent.enter_checkout()
    if commit is None:
        with plan.prepared(preset, overrides):
            yield None
        return
    with worktree(commit, str(flow_run.get_id())) as place:
        plan.prepare(place.folder, preset, overrides)
        yield place


class Work:
    """What the tasks of one rebuild share."""

    def __init__(self, name: str, force: bool, hours: float | None, environment: Mapping[str, str]) -> None:
        self.name = name
        self.force = force
        self.seconds = None if hours is None else hours * 3600
        self.environment = {NAME: name, **environment}
        self.stop = threading.Event()


def _stages(graph: dict[str, tuple[str, ...]], wanted: list[str], work: Work) -> dict[str, State[Any]]:
    """Run stages, each after those that it needs; their final states."""
    futures: dict[str, PrefectFuture[Any]] = {}
    ended = threading.Semaphore(0)
    pauses = _pauses()
    try:
        for stage in wanted:
            run = stage_task.with_options(
                name=stage, task_run_name=stage, retries=len(pauses), retry_delay_seconds=pauses
            )
            before = [futures[other] for other in graph[stage] if other in futures]
            futures[stage] = run.submit(stage, work, return_state=False, wait_for=before)
            futures[stage].add_done_callback(lambda _: ended.release())
        for _ in futures:
            while not ended.acquire(timeout=1.0):
                agent.check()
    finally:
        work.stop.set()
        end = time.monotonic() + PATIENCE
        for future in futures.values():
            future.wait(timeout=max(0.0, end - time.monotonic()))
    return {stage: future.state for stage, future in futures.items()}


def _pauses() -> list[float]:
    """The seconds before each new try. Raises WordmillError."""
    told = os.environ.get(RETRY_SECONDS, PAUSES)
    try:
        return [float(pause) for pause in told.split(",") if pause.strip()]
    except ValueError:
        raise WordmillError(f"{RETRY_SECONDS}: {told!r} are no seconds; give numbers, as in {PAUSES}") from None


def _outcome(states: dict[str, State[Any]], saved: str | None) -> State[Any]:
    counts = Counter((state.name or state.type.value).lower() for state in states.values())
    summary = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    for state in states.values():
        if state.is_failed() or state.is_crashed():
            return Failed(message=state.message or state.name)
    return Completed(message=f"stages: {summary}" + (f"; saved as {saved}" if saved else ""))


def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether to try a failed stage again: not for a mistake, nor for a bug."""
    return (state.state_details.retriable or False) if state.is_failed() else False


@task(cache_policy=NO_CACHE, retry_condition_fn=_may_pass)
def stage_task(stage: str, work: Work) -> State[Any]:
    """Run one stage, its output in the log."""
    log = get_run_logger()
    if not work.force and dvc.is_unchanged(stage):
        return Completed(name="Cached", message=dvc.Outcome.UNCHANGED.value)
    try:
        outcome = dvc.run(stage, log.info, work.force, work.environment, work.stop, work.seconds)
    except dvc.StoppedError as error:
        return Cancelled(message=str(error))
    except dvc.StageFailedError as error:
        return Failed(message=str(error), state_details=StateDetails(retriable=error.transient))
    if outcome is dvc.Outcome.RAN:
        return Completed(message=page.RAN)
    return Completed(name="Cached", message=outcome.value)
