"""A folder and an MLflow experiment for each test of a stage that asks for them."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, request: pytest.FixtureRequest) -> Path:
    """The test runs in a folder of its own, with an experiment of its own in the session's database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"{request.node.name}-{tmp_path.name}")
    monkeypatch.setenv("WORDMILL_REBUILD", "first")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    return tmp_path
