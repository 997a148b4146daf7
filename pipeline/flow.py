"""The Prefect flow `rebuild`: a task per DVC stage, in the order of DVC's own graph.

DVC decides what has to run; Prefect shows it, schedules it and runs independent stages at the same time. A stage that
DVC skips is a task in the state Cached. Parameters are checked against the whole schema before any stage starts; those
that differ from params.yaml are put there for the time of the rebuild (`pipeline.overrides`).

Mistakes end the flow in the state Failed with one line and no traceback: a traceback means a bug.
"""

from typing import Any, cast

from prefect import flow, task
from prefect.client.schemas import State
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from llm.errors import WordmillError
from pipeline import dvc, plan

STAGES_AT_ONCE = 8


@flow(
    name="rebuild",
    description="Brings every output up to date: runs what has changed, and nothing else.",
    task_runner=cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=STAGES_AT_ONCE)),
)
def rebuild(overrides: dict[str, Any] | None = None, preset: str | None = None, force: bool = False) -> State[Any]:
    """Bring every output up to date.

    `overrides` are params for this rebuild alone, such as {"pretrain.steps": 200}; `preset` names a file in presets/
    to take in the place of params.yaml; `force` runs stages that have not changed, too.
    """
    try:
        with plan.prepared(preset, overrides or {}):
            return _stages(force)
    except WordmillError as error:
        return Failed(message=str(error))


def _stages(force: bool) -> State[Any]:
    name = f"prefect-{flow_run.get_id()}"
    futures: dict[str, PrefectFuture[Any]] = {}
    for stage, needed in dvc.graph().items():
        run = stage_task.with_options(name=stage, task_run_name=stage)
        futures[stage] = run.submit(
            stage, force, name, return_state=False, wait_for=[futures[other] for other in needed]
        )
    failures = []
    counts: dict[str, int] = {}
    for future in futures.values():
        future.wait()
        state = future.state
        kind = state.name or state.type.value
        counts[kind] = counts.get(kind, 0) + 1
        if state.is_failed() or state.is_crashed():
            failures.append(state.message or kind)
    summary = ", ".join(f"{count} {kind.lower()}" for kind, count in sorted(counts.items()))
    return Failed(message=failures[0]) if failures else Completed(message=f"stages: {summary}")


@task
def stage_task(stage: str, force: bool, rebuild: str) -> State[Any]:
    """Run one stage, its output in the log."""
    log = get_run_logger()
    if not force and dvc.is_unchanged(stage):
        return Completed(name="Cached", message=dvc.Outcome.UNCHANGED.value)
    try:
        outcome = dvc.run(stage, log.info, force, {"WORDMILL_REBUILD": rebuild})
    except dvc.StageFailedError as error:
        return Failed(message=str(error))
    if outcome is dvc.Outcome.RAN:
        return Completed(message="ran")
    return Completed(name="Cached", message=outcome.value)
