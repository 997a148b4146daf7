"""Running the whole pipeline: command line, flow, DVC."""
