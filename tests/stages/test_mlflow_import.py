"""MLflow is imported with its telemetry off, by whatever part of the project is first."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from pipeline.closure import closure

REPO = Path(__file__).parents[2]
BY_MLFLOW = "stages/mlflow_model.py"  # which MLflow itself loads, in a process of its own
FIRST = """
import sys
from pathlib import Path
from stages import {module}
assert "mlflow" not in sys.modules
import mlflow.telemetry.client
print("telemetry:", mlflow.telemetry.client.get_telemetry_client())
"""


def importing_mlflow() -> list[str]:
    found = []
    for floor in ("stages", "pipeline", "benchmarks"):
        for path in (REPO / floor).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.partition(".")[0] == "mlflow" for name in names):
                    found.append(path.relative_to(REPO).as_posix())
    return sorted({*found} - {BY_MLFLOW})


def test_every_module_that_imports_mlflow_turns_telemetry_off_before() -> None:
    names = importing_mlflow()
    assert len(names) > 5
    for name in names:
        assert "stages/tracking_uri.py" in closure(Path(name), REPO), name


def test_mlflow_makes_no_telemetry_client() -> None:
    """In a process that does not look like a test or like CI, where MLflow makes none anyway."""
    hidden = ("CI", "GITHUB", "PYTEST", "MLFLOW", "DO_NOT_TRACK", "BUILD", "JENKINS", "TRAVIS", "GITLAB")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    code = FIRST.format(module="store")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.stdout == "telemetry: None\n", done.stderr
