"""A sweep as a Prefect flow, with a subflow for each point of the grid, one after the other."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from pipeline import sweep


def run(grid: Sequence[sweep.Point]) -> list[sweep.Outcome]:
    """What `sweep.sweep` does, shown by Prefect."""
    outcomes: list[sweep.Outcome] = []

    @flow(name="sweep", description="Rebuilds every combination of some params, each in a checkout of its own.")
    def whole(points: list[dict[str, Any]]) -> State[Any]:
        log = get_run_logger()
        outcomes.extend(sweep.sweep(grid, log.info, _subflow))
        for line in sweep.lines(outcomes):
            log.info(line)
        failed = sum(outcome.error is not None for outcome in outcomes)
        message = f"{failed} of {len(outcomes)} points failed" if failed else f"{len(outcomes)} points"
        return Failed(message=message) if failed else Completed(message=message)

    state = whole([dict(point.values) for point in grid], return_state=True)
    if not outcomes:  # it did not come to its first point
        state.result()
    return outcomes


def _subflow(
    point: sweep.Point, folder: Path, environment: Mapping[str, str], tell: Callable[[str], None]
) -> sweep.Outcome:
    outcome = sweep.Outcome(point)

    @flow(name="point", flow_run_name=sweep.named(point.values))
    def one(values: dict[str, Any]) -> State[Any]:
        nonlocal outcome
        outcome = sweep.rebuild(point, folder, environment, get_run_logger().info)
        message = f"ran: {', '.join(outcome.ran) or 'nothing, all from the cache'}"
        return Failed(message=outcome.error) if outcome.error else Completed(message=message)

    one(dict(point.values), return_state=True)
    return outcome
