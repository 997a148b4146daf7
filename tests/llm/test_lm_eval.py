"""EleutherAI's lm-eval by the very command and tasks of docs/evaluation.md, against our own figures."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm.compute import Compute
from llm.evaluate import score_tokens
from llm.minimal_pair_files import KEYS, MinimalPair
from llm.minimal_pairs import pair_margins
from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.tokenizer.config import TokenizerConfig
from llm.tokenizer.train import make

PAGE = Path(__file__).parents[2] / "docs/evaluation.md"
DOCUMENTS = [
    "The miller's daughter sang to her hen, and then sold the barn.",
    "Ann had no hen. She sang 'näïve' to the mill!\nThen she ran home.",
]


def test_the_documented_command_gives_our_figures(tiny_config: ModelConfig, compute: Compute, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval comes with the extra `bench`: pip install -e .[bench]")
    text = PAGE.read_text()
    (tmp_path / "tasks").mkdir()
    for task in re.findall(r"```yaml\n(task: (\w+)\n.*?)```", text, re.DOTALL):
        (tmp_path / f"tasks/{task[1]}.yaml").write_text(task[0])
    (command,) = re.findall(r"^    lm_eval (run .*)$", text, re.MULTILINE)

    tokenizer = make(TokenizerConfig(kind="bpe", vocab_size=300, min_count=1), lambda: DOCUMENTS).tokenizer
    model = Transformer(replace(tiny_config, block_size=64), tokenizer.vocab_size).eval()
    model.initialise(seed=3)
    tokenizer.save(tmp_path / "tokenizer")
    folder.save(model, tmp_path / "models/base", tmp_path / "tokenizer", tokenizer.end_of_text)
    pairs = [MinimalPair(f"{a} sang to {b}.", f"{a} to sang {b}.", "") for a in ("Ann", "He", "A hen") for b in "xyzw"]
    rows = [dict(zip(KEYS, pair[:2], strict=True)) for pair in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))

    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *shlex.split(command)],
        cwd=tmp_path,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (written,) = (tmp_path / "runs/lm_eval").rglob("*.json")
    results = json.loads(written.read_text())["results"]

    margins = pair_margins(model, tokenizer, pairs, compute)
    assert 0 < (margins > 0).sum() < len(pairs)  # so that it could differ
    assert results["pairs"]["acc,none"] == (margins > 0).mean()
    scored = score_tokens(model, tokenizer, DOCUMENTS, compute)
    inside = scored.bytes > 0  # without the end-of-text tokens
    expected = -scored.predictions.logprobs[inside].sum() / scored.bytes.sum() / np.log(2)
    assert results["text"]["bits_per_byte,none"] == pytest.approx(expected, abs=1e-4)
