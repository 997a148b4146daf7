"""DVC's remote on an S3-compatible server: pushed from one checkout, pulled into another that has nothing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

NEEDED = "not installed; `pip install -c constraints.txt -e '.[s3-test]'`"
pytest.importorskip("dvc_s3", reason=f"dvc-s3: {NEEDED}")
server = pytest.importorskip("moto.server", reason=f"moto: {NEEDED}")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket on loopback; address and keys are in the environment, as docs/remote.md has them."""
    import boto3

    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="models")
    yield "s3://models/wordmill"
    running.stop()


def dvc(*arguments: str, folder: Path | None = None) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_push_and_pull(checkout: Path, tmp_path: Path, bucket: str) -> None:
    dvc("repro", "-q")
    made = {path.name: path.read_bytes() for path in checkout.glob("*.out")}
    assert len(made) == 4
    dvc("remote", "add", "--local", "--default", "store", bucket)
    dvc("push", "-q", "--run-cache")

    other = tmp_path / "other"
    shutil.copytree(checkout, other, ignore=shutil.ignore_patterns("*.out", "cache", "tmp", "ran.log", "__pycache__"))
    dvc("pull", "-q", "--run-cache", folder=other)
    assert {path.name: path.read_bytes() for path in other.glob("*.out")} == made
    (other / "dvc.lock").unlink()  # the run cache came along: what anybody has computed, nobody computes again
    told = dvc("repro", folder=other)
    assert told.count("is cached - skipping run") == 4
    assert not (other / "ran.log").exists()


def test_the_keys_stay_out_of_the_repository(checkout: Path, bucket: str) -> None:
    dvc("remote", "add", "--local", "--default", "store", bucket)
    told = subprocess.run(["git", "status", "--short", "--ignored"], capture_output=True, text=True, check=True).stdout
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in Path(".dvc/config.local").read_text()
    assert "!! .dvc/config.local" in told
