"""The process of one deployed rebuild: runs the flow `rebuild` of this checkout.

Prefect's own engine takes the code to run from the server: the deployment's entrypoint, its pull steps, its path.
Whoever may write there could run anything. This one takes only the run's parameters from the server. A rebuild that
fails by a user's mistake ends here without a traceback; its state says what was wrong.
"""

import os
import sys
from uuid import UUID


def main() -> None:
    """Run the flow run that the environment names; exit status 0 when its state tells how it ended."""
    from prefect._internal.control_listener import configure_from_env
    from prefect.engine import handle_engine_signals
    from prefect.flow_engine import load_flow_run, run_flow

    from pipeline.flow import rebuild

    try:
        run_id = UUID(os.environ["PREFECT__FLOW_RUN_ID"])
    except (KeyError, ValueError):
        print("pipeline.engine is started by `wordmill agent`; PREFECT__FLOW_RUN_ID names no run", file=sys.stderr)
        sys.exit(2)
    configure_from_env()  # how the worker tells of a cancellation
    with handle_engine_signals(run_id):
        run_flow(rebuild, flow_run=load_flow_run(flow_run_id=run_id), return_type="state")


if __name__ == "__main__":
    main()
