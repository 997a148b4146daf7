"""One thin script for each stage of the pipeline."""

import time

BEGAN = time.time_ns()  # when this process began to read the project's code, since this package is read first

import llm as llm  # noqa: E402 - before anything else of the project's, since it sets what torch reads when imported
