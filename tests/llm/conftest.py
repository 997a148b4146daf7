"""What the tests of training share."""

import pytest

from llm.compute import Compute


@pytest.fixture
def no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs do not take a third of a second each to measure the machine."""
    monkeypatch.setattr(Compute, "measure_peak", lambda self: 1e9)
