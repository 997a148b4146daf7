"""One thin script for each stage of the pipeline."""

import time

BEGAN = time.time_ns()  # when this process began to read the project's code, since this package is read first
