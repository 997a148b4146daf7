"""Registered models in a real store: versions, the champion, and `mlflow models serve` answering with our text."""

import ast
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from llm.compute import Compute
from llm.generate import Sampling, generate
from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.patterns import GPT2
from pipeline.closure import closure
from stages.registry import CODE, is_better, register


@pytest.fixture
def model_folder(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    tokenizer = ByteBPE.from_merges([], GPT2, ["<|endoftext|>"])
    tokenizer.save(tmp_path / "tokenizer")
    model = Transformer(tiny_config, tokenizer.vocab_size)
    model.initialise(seed=5)
    folder.save(model, tmp_path / "model", tmp_path / "tokenizer", tokenizer.end_of_text)
    return tmp_path / "model"


@pytest.fixture
def client(store: str, tmp_path: Path) -> MlflowClient:
    client = MlflowClient(store)
    client.create_experiment(tmp_path.name, artifact_location=(tmp_path / "artifacts").as_uri())
    return client


def exported(client: MlflowClient, at: Path, model: Path, weights: str, text: str, bits: float) -> str:
    """Register the model as a new run's; the champion's version then."""
    experiment = client.get_experiment_by_name(at.name)
    assert experiment
    run_id = client.create_run(experiment.experiment_id).info.run_id
    register(client, run_id, model, at.name, {"weights": weights, "test_text": text, "bits_per_byte": repr(bits)})
    assert client.get_run(run_id).data.tags["wordmill.model_version"].startswith(at.name)
    return str(client.get_model_version_by_alias(at.name, "champion").version)


def test_the_champion_is_the_best_on_the_same_text(client: MlflowClient, model_folder: Path, tmp_path: Path) -> None:
    for weights, text, bits, champion in (
        ("a", "x", 0.5, "1"),
        ("b", "x", 0.4, "2"),
        ("c", "x", 0.6, "2"),
        ("a", "x", 0.5, "2"),  # was registered: no new version
        ("d", "y", 0.1, "2"),  # other text: not compared, and so no champion
        ("d", "y", 0.1, "2"),
        ("b", "x", 0.4, "2"),
    ):
        assert exported(client, tmp_path, model_folder, weights, text, bits) == champion
    # Whoever wants the model of the other text moves the alias, and from then on that text counts.
    client.set_registered_model_alias(tmp_path.name, "champion", "4")
    assert exported(client, tmp_path, model_folder, "b", "x", 0.05) == "4"
    client.delete_registered_model_alias(tmp_path.name, "champion")
    assert exported(client, tmp_path, model_folder, "b", "x", 0.4) == "2"
    versions = client.search_model_versions(f"name = '{tmp_path.name}'")
    assert sorted(int(version.version) for version in versions) == [1, 2, 3, 4]
    assert all(version.run_id in version.description for version in versions)
    assert not [path for path in (tmp_path / "artifacts").rglob("*") if path.suffix in (".pkl", ".pyc")]


@pytest.mark.parametrize(
    ("candidate", "champion", "better", "why"),
    [
        ("x 100 0.5", None, True, "there was no champion"),
        ("x 100 0.4", "x 100 0.5", True, "0.4000 bits per byte on the test text, the champion has 0.5000"),
        ("x 100 0.5", "x 100 0.5", False, "0.5000 bits per byte on the test text, the champion has 0.5000"),
        ("y 100 0.1", "x 100 0.5", False, "the champion was evaluated on other text"),
        ("x 10 0.1", "x 100 0.5", False, "the champion was evaluated on other text"),  # a few documents of the same
        ("x 10 0.1", "x - 0.5", True, "0.1000 bits per byte on the test text, the champion has 0.5000"),  # of before
        ("x 10 0.1", "- - -", False, "the champion was evaluated on other text"),  # registered by hand
        ("x 100 nan", "x 100 0.5", False, "nan bits per byte on the test text, the champion has 0.5000"),
    ],
)
def test_the_rule_of_promotion(candidate: str, champion: str | None, better: bool, why: str) -> None:
    def tags(text: str) -> dict[str, str]:
        values = zip(("test_text", "test_documents", "bits_per_byte"), text.split(), strict=True)
        return {name: value for name, value in values if value != "-"}

    assert is_better(tags(candidate), tags(champion) if champion is not None else None) == (better, why)


def test_the_model_asks_for_what_it_imports(client: MlflowClient, model_folder: Path, tmp_path: Path) -> None:
    """No more and no less, in versions that an index has; otherwise no other environment could serve it."""
    exported(client, tmp_path, model_folder, "a", "x", 0.5)
    (asked,) = (tmp_path / "artifacts").rglob("requirements.txt")
    versions = dict(line.split("==") for line in asked.read_text().split())
    assert not [version for version in versions.values() if "+" in version]
    files = [Path(__file__).parents[2] / file for file in closure(CODE.relative_to(CODE.parents[1]), CODE.parents[1])]
    names: set[str] = set()
    for node in itertools.chain.from_iterable(ast.walk(ast.parse(file.read_text())) for file in files):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    brought = {"pandas", "triton"}  # by mlflow; by torch for CUDA
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"llm"} - brought == set(
        versions
    )


def test_mlflow_serves_the_champion(
    client: MlflowClient, store: str, model_folder: Path, tmp_path: Path, compute: Compute
) -> None:
    exported(client, tmp_path, model_folder, "a", "x", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{tmp_path.name}@champion"]
    options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    bin_folder = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "PATH": bin_folder}
    server = subprocess.Popen([*program, *options], cwd=tmp_path, env=environment, start_new_session=True)

    def ask(prompt: str, **params: Any) -> Any:
        sent = {
            "dataframe_split": {"columns": ["prompt"], "data": [[prompt]]},
            "params": {"max_new_tokens": 9, "temperature": 0.0, "frequency_penalty": 1.5, **params},
        }
        headers = {"Content-Type": "application/json"}
        address = f"http://127.0.0.1:{port}/invocations"
        request = urllib.request.Request(address, json.dumps(sent).encode(), headers)
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)

    try:
        deadline = time.monotonic() + 600
        while True:
            assert server.poll() is None
            assert time.monotonic() < deadline, "waited too long for the server"
            try:
                found = ask("Once")["predictions"][0]["text"]
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        stop = found[4:6]
        assert ask("Once", stop=[stop])["predictions"][0]["text"] == found[: found.find(stop)]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask("x" * 100)
        assert refused.value.code == 400
        assert b"prompt 1 has 101 tokens" in refused.value.read()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    model = folder.load(model_folder)
    ids = generate(model, [[256, *b"Once"]], 9, Sampling(0, frequency_penalty=1.5), 1, 256, compute)[0]
    assert found == ByteBPE.load(model_folder).decode(ids)
