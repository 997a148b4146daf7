"""`wordmill ui`: what it starts."""

import os

import pytest

from pipeline import cli


def test_no_password_stands_on_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "postgresql://me:open-sesame@db.example.org/runs?password=open-sesame"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.append(arguments))
    cli.ui(port=5001)
    (arguments,) = started
    assert arguments[1:4] == ["-m", "mlflow", "server"]
    assert "open-sesame" not in " ".join(arguments)
    assert os.environ["MLFLOW_BACKEND_STORE_URI"] == uri
