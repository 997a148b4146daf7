"""The run of a sweep in MLflow: what was varied, and the table; the rebuilds of its points are its children."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from stages.mailbox import Unavailable
from stages.store import client, experiment_id, reachable
from stages.tracking_uri import experiment_name, tracking_uri

Cells = Sequence[str]


def begin(axes: Mapping[str, Sequence[object]]) -> str | None:
    """Open the run; its id, or None, with a warning, if the store is down. Raises WordmillError for a wrong store."""
    uri = tracking_uri()
    try:
        with reachable(uri, starting=True):
            mlflow = client(uri)
            experiment = experiment_id(mlflow, uri, experiment_name())
            tags = {"wordmill.kind": "sweep", "mlflow.source.type": "LOCAL", "mlflow.source.name": "wordmill sweep"}
            run = mlflow.create_run(experiment, tags=tags, run_name=f"sweep {datetime.now():%m-%d %H:%M:%S}")
            for axis, values in axes.items():
                mlflow.log_param(run.info.run_id, axis, str(list(values)))
            return str(run.info.run_id)
    except Unavailable as error:
        print(f"warning: the sweep gets no run of its own: {error}")
        return None


def end(run_id: str, table: Sequence[Cells], status: str) -> None:
    """Close the run with the table, the first row of which is its heading: as its description and as a CSV file."""
    heading, *rows = table
    lines = [" | ".join(row) for row in (heading, ["---"] * len(heading), *rows)]
    csv = "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in table)
    uri = tracking_uri()
    try:
        with reachable(uri):
            mlflow = client(uri)
            mlflow.set_tag(run_id, "mlflow.note.content", "\n".join(f"| {line} |" for line in lines)[:8000])
            mlflow.log_text(run_id, csv, "table.csv")
            mlflow.set_terminated(run_id, status)
    except Unavailable as error:
        print(f"warning: the sweep's run is not closed: {error}")
