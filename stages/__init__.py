"""One thin script for each stage of the pipeline."""

import time

import llm as llm  # early, since it sets what torch reads when it is imported

BEGAN = time.time_ns()  # when this process began to read the project's code, since this package is read first
