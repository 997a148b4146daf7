"""What a later stage would refuse is refused before the first one works, quickly and without torch."""

import ast
import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm import machine
from llm.errors import WordmillError
from pipeline.closure import closure
from stages import params, preflight, schema
from stages.preflight import CHECKS, following

REPO = Path(__file__).parents[2]
DEFAULT = params.document(params.DEFAULTS)
STAGES = [
    path.stem
    for path in (REPO / "stages").glob("*.py")
    if re.search(r'^    main\("|^        main\("', path.read_text(), re.M)
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(**values: Any) -> dict[str, Any]:
    content = copy.deepcopy(DEFAULT)
    for name, value in values.items():
        section, _, key = name.partition("__")
        content[section][key] = value
    return content


def refusal(**values: Any) -> str:
    with pytest.raises(WordmillError) as caught:
        preflight.check(schema.check(changed(**values)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def model_folder(**settings: Any) -> str:
    place = Path("given")
    place.mkdir(exist_ok=True)
    (place / "model.safetensors").touch()
    (place / "config.json").write_text(json.dumps(settings))
    return "given"


def checkpoints(*steps: int) -> str:
    for step in steps:
        place = Path(f"old/step-{step:08d}")
        place.mkdir(parents=True)
        (place / "state.json").touch()
    return "old"


def written(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


OTHER = {"corpus__source": "files", "corpus__paths": ["text.txt"]}
# What is wrong, and how the line begins. Each is what some stage after the first would say.
CASES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "judged": (lambda: {**OTHER, "preferences__source": "judged"}, "params.yaml: preferences.source: judged needs"),
    "stories": (lambda: {**OTHER, "preferences__source": "stories"}, "params.yaml: preferences.source: stories needs"),
    "corpus": (lambda: {**OTHER, "corpus__paths": ["nothing.txt"]}, "corpus.paths: nothing.txt: no such file"),
    "corpus kind": (lambda: {**OTHER, "corpus__paths": [written("a.doc", "x")]}, "corpus.paths: a.doc: unknown kind"),
    "corpus folder": (
        lambda: {"corpus__source": "hub", "corpus__dataset": "./none"},
        "corpus.dataset: 'none': No such file",
    ),
    "tokenizer": (lambda: {"tokenizer__kind": "file", "tokenizer__path": "none.json"}, "tokenizer.path: none.json: "),
    "broken tokenizer": (
        lambda: {"tokenizer__kind": "file", "tokenizer__path": written("tokenizer.json", "{")},
        "tokenizer.path: ",
    ),
    "compared tokenizer": (lambda: {"tokenizer__compare": ["file:none.json"]}, "tokenizer.path: none.json: "),
    "pairs": (
        lambda: {"preferences__source": "files", "preferences__paths": ["none.jsonl"]},
        "preferences.paths: none.jsonl: not found",
    ),
    "pairs by auto": (lambda: {"preferences__paths": ["none.jsonl"]}, "preferences.paths: none.jsonl: not found"),
    "no pairs match": (lambda: {"preferences__paths": ["*.jsonl"]}, "preferences.paths: *.jsonl: no file matches"),
    "pairs without a key": (
        lambda: {"preferences__paths": [written("pairs.jsonl", '{"prompt": "a", "chosen": "b"}\n')]},
        "preferences.paths: pairs.jsonl line 1: ",
    ),
    "minimal pairs": (lambda: {"evaluate__minimal_pairs": ["none.jsonl"]}, "evaluate.minimal_pairs: none.jsonl: "),
    "minimal pairs without a key": (
        lambda: {"evaluate__minimal_pairs": [written("blimp.jsonl", '{"sentence_good": "a"}\n')]},
        "evaluate.minimal_pairs: blimp.jsonl line 1: ",
    ),
    "start": (lambda: {"pretrain__start_from": "none"}, "pretrain.start_from: none: no model there"),
    "start of a strange kind": (
        lambda: {"pretrain__start_from": model_folder(model_type="bert")},
        "pretrain.start_from: given/config.json: model_type: ",
    ),
    "start of another shape": (
        lambda: {
            "pretrain__start_from": model_folder(
                model_type="llama",
                vocab_size=5000,
                num_hidden_layers=2,
                num_attention_heads=8,
                num_key_value_heads=4,
                hidden_size=128,
                intermediate_size=384,
                max_position_embeddings=256,
                rms_norm_eps=1e-5,
                rope_theta=1000.0,
                tie_word_embeddings=True,
                hidden_act="silu",
            )
        },
        "pretrain.start_from: given is of another shape than the section model; set model.n_layer=2",
    ),
    "start with heads of their own width": (
        lambda: {
            "pretrain__start_from": model_folder(
                model_type="llama",
                vocab_size=5000,
                num_hidden_layers=4,
                num_attention_heads=8,
                num_key_value_heads=4,
                hidden_size=128,
                head_dim=32,
                intermediate_size=384,
                max_position_embeddings=256,
                rms_norm_eps=1e-5,
                rope_theta=1000.0,
                tie_word_embeddings=True,
            )
        },
        "pretrain.start_from: given is of another shape than the section model; set model.head_dim=32",
    ),
    "flash with a wide head_dim": (
        lambda: {"model__attention": "flash", "model__head_dim": 256},
        "model.attention: flash takes heads up to 128 wide, not 256",
    ),
    "no checkpoints": (lambda: {"pretrain__continue_from": "none"}, "pretrain.continue_from: none: no such folder"),
    "empty checkpoints": (
        lambda: {"pretrain__continue_from": written("file", "x")},
        "pretrain.continue_from: file: no such folder",
    ),
    "late checkpoints": (
        lambda: {"pretrain__continue_from": checkpoints(100, 2000)},
        "pretrain.continue_from: old: is after step 2000",
    ),
    "cuda": (lambda: {"compute__device": "cuda"}, "compute.device: cuda is not available on this machine"),
    "mps": (lambda: {"compute__device": "mps"}, "compute.device: mps is not available on this machine"),
    "flash": (lambda: {"model__attention": "flash", "compute__device": "cpu"}, "model.attention: flash needs "),
    "flash with wide heads": (
        lambda: {"model__attention": "flash", "model__d_model": 2048},
        "model.attention: flash takes heads up to 128 wide, not 256",
    ),
    "flex": (lambda: {"model__attention": "flex", "compute__device": "cpu"}, "model.attention: flex needs a CUDA GPU"),
    "compiled ddp": (
        lambda: {"pretrain__parallel": "ddp", "compute__compile": True, "compute__device": "cpu"},
        "compute.compile: ",
    ),
    "fp16 fsdp2": (
        lambda: {"pretrain__parallel": "fsdp2", "compute__precision": "fp16", "compute__device": "cpu"},
        "compute.precision: fp16 does not go with pretrain.parallel: fsdp2",
    ),
    "memory": (lambda: {"model__d_model": 65536, "model__n_layer": 1000}, "model: "),
    "formats": (lambda: {"model__position": "none"}, "params.yaml: export.formats: huggingface: "),
    "gguf tokenizer": (lambda: {"tokenizer__kind": "bytes"}, "params.yaml: export.formats: gguf: "),
    "samples": (lambda: {"samples__max_new_tokens": 256}, "params.yaml: samples.max_new_tokens: 256 leaves no room"),
    "stride": (lambda: {"evaluate__stride": 257}, "params.yaml: evaluate.stride: 257 is longer"),
    "pairs and batches": (lambda: {"preferences__pairs": 8}, "dpo.batch_size: 16 is more than preferences.pairs, 8"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_before_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: machine.Gpus(problem="none here"))
    monkeypatch.setattr(machine, "has_mps", lambda: False)
    Path("text.txt").write_text("some text")
    values, line = CASES[name]
    assert refusal(**values()).startswith(line)


def test_old_gpus_and_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: machine.Gpus(2, 7))
    assert refusal(compute__precision="bf16").startswith("compute.precision: this GPU has no bf16")
    line = refusal(pretrain__parallel="ddp", pretrain__processes=5, pretrain__micro_batch_size=2)
    assert line == "pretrain.processes: each needs a GPU; here are 2 for 5"


def test_every_stage_is_listed() -> None:
    assert set(CHECKS) == set(STAGES)


def test_stages_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    assert following("download") == list(CHECKS)
    assert following("evaluate") == ["evaluate", "export", "report"]


# Refusals in the stages' own code that name a key of params.yaml, by file: those that no check can foresee, since what
# they look at is made by an earlier stage or known to the network alone. Any other must be a case above.
ONLY_LATER = {
    "stages/samples.py": "samples.prompts, samples.opening_characters: by the tokenizer that is trained",
    "llm/tokenizer/bpe.py": "tokenizer.vocab_size: by the corpus",
    "llm/tokenizer/train.py": "tokenizer.vocab_size: by the corpus",
    "llm/tokenizer/sentencepiece.py": "tokenizer.vocab_size: by the corpus",
    "llm/tokenizer/encodings.py": "tokenizer.encoding: by the network",
    "llm/tokenizer/patterns.py": "tokenizer.pattern: by the corpus",
    "llm/tokenizer/foreign.py": "tokenizer.pattern: by another library",
    "llm/preferences.py": "preferences.pairs: by what the corpus and the model give",
    "llm/export/gguf.py": "export.formats: by the tokenizer's merges",
    "llm/corpus/files.py": "corpus.text_field: by the records",
    "llm/corpus/build.py": "corpus: by the documents",
    "llm/corpus/hub.py": "corpus: by the hub",
    "llm/shards.py": "model.block_size: by the shards",
    "llm/batches.py": "model.block_size: by the shards",
    "llm/dpo.py": "dpo.batch_size: by the pairs that are left",
    "llm/checkpoint.py": "by what a checkpoint holds",
    "llm/training_state.py": "by what a checkpoint holds",
    "llm/pretrain.py": "pretrain.continue_from, a damaged checkpoint",
    "llm/model/flash.py": "the same as in the checks, with the device and the tensors at hand",
    "llm/model/attention.py": "the same as in the checks, with the device and the tensors at hand",
    "llm/parallel.py": "the same as in the checks, with the device at hand",
    "llm/devices.py": "the same as in the checks, with the device at hand",
    "llm/export/formats.py": "the same as in the checks, by the model at hand",
    "llm/model/transformer.py": "the same as in the checks, with the model at hand",
    "llm/compute.py": "the same as in the checks, with the device at hand",
    "stages/pretrain.py": "the same as in the checks, with the model and the tokenizer at hand",
    "stages/preferences.py": "the same as in the checks, by the corpus's manifest",
    "stages/evaluate.py": "the same as in the checks, by the model at hand",
    "stages/export.py": "the same as in the checks, by the model at hand",
    "llm/nonfinite.py": "by what the training does",
}
REACHED = {
    "llm/minimal_pair_files.py", "llm/preference_files.py", "stages/params.py", "stages/start.py",
    "stages/machines.py", "llm/machine.py", "stages/schema.py", "stages/preflight.py",
}  # fmt: skip


NAMES_A_KEY = re.compile(rf"(params\.yaml: )?({'|'.join(DEFAULT)})\.[a-z_]+")


def refusals(path: Path) -> list[str]:
    """The beginnings of messages of WordmillErrors in a file that name a section of params.yaml."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            parts = [part.value for part in ast.walk(node.exc.args[0]) if isinstance(part, ast.Constant)]
            text = "".join(part for part in parts if isinstance(part, str))
            if ast.unparse(node.exc.func) == "WordmillError" and NAMES_A_KEY.match(text):
                found.append(text)
    return found


def test_refusals_of_stages_are_checked_before_or_cannot_be() -> None:
    files = {path for stage in STAGES for path in closure(Path(f"stages/{stage}.py"), REPO)}
    naming = {path for path in files if refusals(REPO / path)}
    assert "llm/compute.py" in naming
    unknown = naming - ONLY_LATER.keys() - REACHED
    assert not unknown, f"add their conditions to stages/preflight.py: {sorted(unknown)}"


PROGRAM = """
import resource, sys
sys.argv = ["wordmill", "check"]
from pipeline import cli
try:
    cli.main()
except SystemExit as ended:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(ended.code, used.ru_utime + used.ru_stime, "torch" in sys.modules)
"""


def test_check_takes_two_seconds_at_most_and_no_torch(folder: Path) -> None:
    text = (REPO / "presets/default.yaml").read_text().replace("device: auto", "device: cuda").replace("fused", "flash")
    Path("params.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={"PYTHONPATH": str(REPO)}, capture_output=True, text=True
    )
    status, seconds, torch = done.stdout.split()
    if not machine.gpus().count:
        assert status == "2", done.stderr
        assert done.stderr.startswith("wordmill: compute.device: cuda is not available"), done.stderr
    assert float(seconds) < 2
    assert torch == "False"


def test_the_first_stage_says_it(folder: Path, store: str) -> None:
    for name in ("llm", "stages", "presets", "dvc.yaml"):
        Path(name).symlink_to(REPO / name)
    text = (REPO / "presets/default.yaml").read_text().replace("minimal_pairs: []", "minimal_pairs: [none.jsonl]")
    Path("params.yaml").write_text(text)
    command = [sys.executable, "-m", "stages.download"]
    done = subprocess.run(command, env={"PATH": "", "MLFLOW_TRACKING_URI": store}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "download: evaluate.minimal_pairs: none.jsonl: not found\n")
    assert not Path("data").exists()
