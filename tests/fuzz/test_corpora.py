"""Thousands of damaged answers and files: each gives documents, or one clean line; none hangs or takes much memory.

One process does all of it under a limit of its address space, so that a crash, a hang or a lack of memory is seen. A
seed gives the same mutations again.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_damaged_answers_and_files_are_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.corpora", "1", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    counts = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert sum(map(int, counts.values())) >= 4000, counts
    assert all(int(counts[f"{kind} errors"]) > 0 for kind in ("answers", "files", "pairs", "shards")), counts
