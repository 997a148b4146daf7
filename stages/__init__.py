"""One thin script for each stage of the pipeline."""

import llm as llm  # first of all, since it sets what torch reads when it is imported
