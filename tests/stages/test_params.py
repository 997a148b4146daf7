"""params.yaml is read strictly: each mistake is one line that names the path and says what to do."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from llm.compute import ComputeConfig
from llm.errors import WordmillError
from llm.model.config import ModelConfig
from stages import params

MODEL = """
model:
  n_layer: 2
  n_head: 8
  n_kv_head: 4
  d_model: 256
  d_ff: 512
  block_size: 64
  attention: fused
  position: rope
  rope_theta: 1e4
  norm: rmsnorm
  norm_eps: 1e-5
  qk_norm: false
  feed_forward: swiglu
  bias: false
  dropout: 0
  tie_head: true
"""
COMPUTE = """
compute: {device: cpu, precision: fp32, tf32: false, compile: false, threads: 2, deterministic: true}
"""


@dataclass(frozen=True)
class Params:
    model: ModelConfig
    compute: ComputeConfig


def read(tmp_path: Path, text: str) -> Params:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return params.load(Params, path)


def test_a_good_file_is_read_with_yaml_1_2_numbers(tmp_path: Path) -> None:
    read_params = read(tmp_path, MODEL + COMPUTE)
    assert read_params.model.norm_eps == 1e-5
    assert params.flat(read_params)["compute.threads"] == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_layer", "n_layers", "params.yaml: model.n_layers: unknown key; did you mean 'n_layer'?"),
        ("n_layer: 2", "n_layer: two", "params.yaml: model.n_layer: input should be a valid integer, found 'two'"),
        ("n_layer: 2", "n_layer: true", "params.yaml: model.n_layer: input should be a valid integer, found True"),
        ("n_layer: 2", "n_layer: 2.0", "params.yaml: model.n_layer: input should be a valid integer, found 2.0"),
        ("norm_eps: 1e-5", "norm_eps: .nan", "params.yaml: model.norm_eps: input should be a finite number, found nan"),
        ("norm_eps: 1e-5", "norm_eps: -1", "params.yaml: model.norm_eps: -1.0 is not positive"),
        (
            "norm: rmsnorm",
            "norm: batchnorm",
            "params.yaml: model.norm: input should be 'rmsnorm' or 'layernorm', found 'batchnorm'",
        ),
        ("dropout: 0", "dropout: 1", "params.yaml: model.dropout: 1.0 is not in [0, 1); 0 is none, 0.1 is usual"),
        ("n_head: 8", "n_head: 6", "params.yaml: model.n_head: 6 does not divide d_model 256; use 4 or 8"),
        ("device: cpu", "device: tpu", "params.yaml: compute.device: input should be 'auto', 'cpu', 'cuda' or 'mps'"),
        ("compute:", "computer:", "params.yaml: computer: unknown section; did you mean 'compute'?"),
        (COMPUTE, "", "params.yaml: compute: section missing; copy it from presets/default.yaml"),
        (COMPUTE, "compute: 3", "params.yaml: compute: expected keys and values, found 3"),
        ("model:", "model: [", "params.yaml line"),
        ("compute:", "model: {}\ncompute:", "params.yaml line 20: not valid YAML: found duplicate key"),
        (MODEL + COMPUTE, "just words", "params.yaml: expected sections such as `corpus:`, found str"),
        (MODEL + COMPUTE, "", "params.yaml: expected sections such as `corpus:`, found nothing"),
    ],
)
def test_each_mistake_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(WordmillError) as caught:
        read(tmp_path, (MODEL + COMPUTE).replace(old, new))
    line = str(caught.value).replace(f"{tmp_path}/", "")
    assert line.startswith(message)
    assert "\n" not in line


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WordmillError, match="not found; run in the repository root"):
        params.load(Params, tmp_path / "params.yaml")


def test_every_key_that_names_files_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run records their digests, and `wordmill reproduce` links them: a key left out would make both lie."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "corpus.paths",
        "tokenizer.path",
        "preferences.paths",
        "evaluate.minimal_pairs",
        "pretrain.start_from",
    ):
        Path(name).write_text("yours")
        assert params.named_files({name: name, "corpus.source": name}) == [Path(name)]


@pytest.mark.parametrize(
    "text",
    [
        "samples: &a\n  prompts: [*a]\n",
        "samples:\n  prompts: &a [1, [2, *a]]\n",
        "&a\nsamples: *a\n",
        "samples: {temperature: &a {x: *a}}\n",
    ],
)
def test_a_value_that_contains_itself_is_refused(text: str) -> None:
    """Comparing such values, copying them or writing them never ends."""
    with pytest.raises(WordmillError, match=r"params\.yaml: the value &a contains itself"):
        params.parse(text, "params.yaml")


def test_a_value_may_stand_twice() -> None:
    assert params.parse("samples: {prompts: &a [x]}\nevaluate: {paths: *a}\n", "x.yaml")["evaluate"] == {"paths": ["x"]}
