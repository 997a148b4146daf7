"""What a user can get wrong, through the very commands that the user runs: one line, status 2, no traceback."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm.model import folder as model_folder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.tokenizer.tokenizer import Tokenizer
from pipeline.presets import changed
from tests.stages.mlflow_server import NO_STORE

REPO = Path(__file__).parents[1]
OF_THE_STORE = re.compile(r"warning: (tracking is off .* nothing listens there|its metrics are kept in .*\.jsonl)$")
SMALL: dict[str, Any] = {
    "corpus.documents": 60,
    "corpus.val_share": 0.1,
    "corpus.test_share": 0.1,
    "compute.threads": 1,
}
SMALL |= {"tokenizer.vocab_size": 300, "compute.device": "cpu"}


class Project:
    """A folder with the project's code and params, as far as stages need it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "MLFLOW_TRACKING_URI": NO_STORE}
        folder.mkdir(exist_ok=True)
        for name in ("llm", "stages", "pipeline", "presets", "dvc.yaml"):
            (folder / name).symlink_to(REPO / name)
        self.write((REPO / "presets/default.yaml").read_text())
        self.put(**SMALL)

    def write(self, params: str) -> None:
        (self.folder / "params.yaml").write_text(params)

    def put(self, **values: Any) -> None:
        """Change params: names with a dot or with section__key."""
        text = (self.folder / "params.yaml").read_text()
        self.write(changed(text, {name.replace("__", "."): value for name, value in values.items()}, "test"))

    def replace(self, old: str, new: str) -> None:
        """Change params as an editor does, with nobody checking."""
        text = (self.folder / "params.yaml").read_text()
        assert re.search(old, text)
        self.write(re.sub(old, new, text, count=1))

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
        )

    def refused(self, *command: str, **environment: str) -> str:
        """The one line of a command that ends with status 2; above it may be how far it had come."""
        done = self.run(*command, **environment)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 2, done.stdout + done.stderr
        *before, line = [line for line in done.stderr.splitlines() if not OF_THE_STORE.match(line)]
        assert all(re.search(r": [0-9].*/s($|, )", progress) for progress in before), done.stderr
        return line


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="module")
def with_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder after the stages download, tokenizer and shards."""
    project = Project(tmp_path_factory.mktemp("built"))
    for stage in ("download", "tokenizer", "shards"):
        done = project.run(f"stages.{stage}")
        assert done.returncode == 0, done.stderr
    return project.folder / "data"


@pytest.fixture
def prepared(project: Project, with_corpus: Path) -> Project:
    """A project that has its data already."""
    shutil.copytree(with_corpus, project.folder / "data")
    return project


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("  steps: [0-9]+", "  stps: 3", "pretrain.stps: unknown key; did you mean 'steps'?"),
        ("  steps: [0-9]+", "  steps: many", "pretrain.steps: input should be a valid integer, found 'many'"),
        ("pretrain:((?s:.*?))  lr: [^ ]+", r"pretrain:\1  lr: -1e-3", "pretrain.lr: -0.001 is not positive"),
        ("  n_head: [0-9]+", "  n_head: 5", "model.n_head: 5 does not divide d_model "),
        ("pretrain:", "pretrian:", "pretrian: unknown section; did you mean 'pretrain'?"),
    ],
    ids=["unknown key", "wrong type", "negative rate", "heads and width", "unknown section"],
)
def test_params(project: Project, old: str, new: str, line: str) -> None:
    project.replace(old, new)
    assert project.refused("stages.pretrain").startswith(f"pretrain: params.yaml: {line}")


def test_wordmill_check_says_it_before_anything_runs(project: Project) -> None:
    project.replace("  beta: [^ ]+", "  beta: 0")
    assert project.refused("pipeline.cli", "check") == "wordmill: params.yaml: dpo.beta: 0.0 is not positive"


def test_missing_file(project: Project) -> None:
    project.put(corpus__source="files", preferences__source="corpus", corpus__paths=["nothing.txt"])
    assert project.refused("stages.download") == "download: corpus.paths: nothing.txt: no such file"


def test_empty_corpus(project: Project) -> None:
    (project.folder / "empty.txt").write_text("\n \n")
    project.put(corpus__source="files", preferences__source="corpus", corpus__paths=["empty.txt"])
    assert project.refused("stages.download").startswith("download: corpus.source files: the corpus is empty")


def test_binary_file(project: Project) -> None:
    (project.folder / "picture.txt").write_bytes(bytes(range(256)) * 8)
    project.put(corpus__source="files", preferences__source="corpus", corpus__paths=["picture.txt"])
    line = project.refused("stages.download")
    assert line.startswith("download: picture.txt: ")
    assert "not a text file (holds NUL bytes)" in line


def test_invalid_utf8_is_replaced_and_counted(project: Project) -> None:
    lines = [f"a line with the number {number}, long enough to be text".encode() for number in range(40)]
    lines[3] += b" \xff"
    lines[5] += b" \xc3(\xe2\x82"
    (project.folder / "lines.txt").write_bytes(b"\n".join(lines))
    project.put(
        corpus__source="files", preferences__source="corpus", corpus__paths=["lines.txt"], corpus__split_text="line"
    )
    done = project.run("stages.download")
    assert done.returncode == 0, done.stderr
    assert "3 malformed sequences replaced" in done.stdout
    counts = json.loads((project.folder / "data/corpus/manifest.json").read_text())
    assert (counts["documents"], counts["invalid_utf8"]) == (40, 3)


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Serve a text on loopback; its address."""
    root = tmp_path_factory.mktemp("served")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def serve(text: str) -> str:
            (root / "book.txt").write_text(text)
            return f"http://127.0.0.1:{server.server_port}/book.txt"

        yield serve
        server.shutdown()


def test_wrong_sha256(project: Project, served: Callable[[str], str]) -> None:
    address = served("some text\n" * 99)
    project.put(corpus__source="url", preferences__source="corpus", corpus__urls=[address], corpus__sha256=["0" * 64])
    line = project.refused("stages.download", no_proxy="127.0.0.1")
    assert line.startswith(f"download: {address}: wrong SHA-256: expected {'0' * 64}, got ")
    assert not (project.folder / "data/corpus").exists()


def test_offline_hub(project: Project) -> None:
    project.put(
        corpus__source="hub", preferences__source="corpus", corpus__dataset="owner/name", corpus__revision="0" * 40
    )
    line = project.refused("stages.download", HF_HUB_OFFLINE="1")
    assert line.startswith("download: data set owner/name: HF_HUB_OFFLINE is set")


def test_vocabulary_larger_than_the_corpus_gives(prepared: Project) -> None:
    prepared.put(tokenizer__vocab_size=60_000)
    line = prepared.refused("stages.tokenizer")
    assert re.match(r"tokenizer: tokenizer.vocab_size: 60000 asked, but the training text gives \d+ tokens", line)


def test_corpus_smaller_than_a_context_window(prepared: Project) -> None:
    prepared.put(model__block_size=100_000, samples__max_new_tokens=10)
    line = prepared.refused("stages.pretrain")
    assert re.match(
        r"pretrain: data/shards/train: \d+ tokens are less than one context window of 100000; "
        r"lower model.block_size or give more text",
        line,
    )


def test_preferences_with_a_missing_key(prepared: Project) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    lines = [json.dumps(good), "", json.dumps({"prompt": "a", "chosen": "b"})]
    (prepared.folder / "pairs.jsonl").write_text("\n".join(lines))
    prepared.put(preferences__source="files", preferences__paths=["pairs.jsonl"])
    (prepared.folder / "models/base").mkdir(parents=True)  # not read for this source
    line = prepared.refused("stages.preferences")
    assert line == "preferences: pairs.jsonl line 3: key 'rejected' is missing or not a string"


def test_a_prompt_longer_than_the_context(prepared: Project, tiny_config: ModelConfig) -> None:
    tokenizer = Tokenizer.load(prepared.folder / "data/tokenizer")
    model = Transformer(tiny_config, tokenizer.vocab_size)
    for name in ("base", "dpo"):
        out = prepared.folder / "models" / name
        model_folder.save(model, out, prepared.folder / "data/tokenizer", tokenizer.end_of_text)
    prepared.put(samples__prompts=["Short.", "long " * 40])
    line = prepared.refused("stages.samples")
    assert line.startswith("samples: samples.prompts: prompt 2 has ")
    assert "model.block_size 32 leaves room for 30 and one to follow" in line


def test_an_input_that_is_not_there(project: Project) -> None:
    assert project.refused("stages.tokenizer") == (
        "tokenizer: data/corpus: not found; `dvc repro` makes it, or `dvc checkout` brings it back"
    )
