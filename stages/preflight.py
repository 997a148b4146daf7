"""What a later stage would refuse, found before any stage works: wrong files, devices and packages.

`stages.schema` checks params.yaml by itself. Here are the checks against the machine: every file that a param names is
opened, the device is asked for, and the model is held against the memory. They import no torch and take less than two
seconds of processor time, so `wordmill check`, the Prefect flow and every stage that starts run them; a stage runs its
own and those of all stages that follow from it. A mistake in params.yaml for the last stage so ends the first one.

What only the data of earlier stages can show stays with the stages: too small a corpus for the vocabulary, a prompt
longer than the context, too few pairs.

WORDMILL_PREFLIGHT=own in the environment leaves out what follows, as for a corpus that is made on a machine without the
GPU that trains later.
"""

import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import psutil

from llm import machine, minimal_pair_files
from llm.corpus.addresses import fill
from llm.corpus.config import CorpusConfig, kind
from llm.corpus.files import file_unit, find, read_rows
from llm.errors import WordmillError
from llm.model.config import WIDEST_FLASH_HEAD, ModelConfig
from llm.model.hf_configs import described
from llm.preference_account import Account
from llm.preference_files import converted
from stages import params, schema
from stages.lineage import declared
from stages.machines import nodes
from stages.schema import Schema
from stages.start import check_shape

OPENED = 100  # files of one param whose first record is read; of the others it is seen that they are there
SMALL = 16 << 20  # bytes; larger files that must be read whole for their first record are only opened
TRAINED_BYTES = 16  # a parameter in training: weight, gradient and AdamW's two moments, fp32
LOADED_BYTES = 4


def corpus_files(given: Schema) -> None:
    if given.corpus.source == "files":
        with _named("corpus.paths"):
            for path in find(given.corpus.paths, folders=True):
                file_unit(path, path.name, given.corpus, Path())
                _open(path)
    if given.corpus.source == "url":
        for url in given.corpus.urls:
            fill(url)  # the environment variables that it names


def corpus_folder(given: Schema) -> None:
    if given.corpus.source == "hub":
        _check_dataset(given.corpus, "corpus")


def tokenizer_files(given: Schema) -> None:
    from llm.tokenizer.foreign import read_file  # only here: its libraries take a while, and most runs name no file

    config = given.tokenizer
    variants = [config, *(config.variant(name) for name in config.compare)]
    for path in dict.fromkeys(variant.path for variant in variants if variant.kind == "file"):
        if not path:
            raise WordmillError("tokenizer.compare: file: names no file; set tokenizer.path, or write file:PATH")
        with _named("tokenizer.path"):
            read_file(Path(path))


def attention(given: Schema) -> None:
    kind = given.model.attention
    if kind not in ("flash", "flex"):
        return
    if kind == "flash" and given.model.d_head > WIDEST_FLASH_HEAD:
        raise WordmillError(
            f"model.attention: flash takes heads up to {WIDEST_FLASH_HEAD} wide, not {given.model.d_head}; "
            "use more heads or fused"
        )
    if kind == "flash" and find_spec("triton") is None:
        raise WordmillError(
            "model.attention: flash needs the package triton (pip install triton, on Linux); or use fused"
        )
    if kind == "flash" and os.environ.get("TRITON_INTERPRET") == "1":
        return
    name = machine.device(given.compute)
    if name != "cuda":
        raise WordmillError(f"model.attention: {kind} needs a CUDA GPU and is to run on {name}; use fused")
    if kind == "flash" and machine.gpus().capability < 8:
        raise WordmillError("model.attention: flash needs a GPU of compute capability 8.0 or newer; use fused")


def several_processes(given: Schema) -> None:
    """As `llm.parallel.check`, which is told what torch says of the device."""
    config, kind = given.pretrain, given.pretrain.parallel
    if kind == "none":
        return
    here = config.processes // nodes(config.processes)
    name = machine.device(given.compute)
    if name == "mps":
        raise WordmillError(f"pretrain.parallel: {kind} runs on cpu and cuda, not on mps; set compute.device: cpu")
    if name == "cuda" and here > machine.gpus().count:
        raise WordmillError(f"pretrain.processes: each needs a GPU; here are {machine.gpus().count} for {here}")
    if given.compute.compile:
        raise WordmillError(f"compute.compile: true does not go with pretrain.parallel: {kind}; use false, or none")
    if kind == "fsdp2" and given.compute.precision == "fp16":
        raise WordmillError("compute.precision: fp16 does not go with pretrain.parallel: fsdp2; use bf16 or fp32")


def memory(given: Schema) -> None:
    """Every model is made on the host, and on a CPU it is trained there."""
    trained_here = given.pretrain.steps and given.pretrain.parallel == "none" and machine.device(given.compute) == "cpu"
    trained_vocabulary = given.tokenizer.vocab_size if given.tokenizer.kind in ("bpe", "sentencepiece") else 256
    count = _parameters_at_least(given.model, trained_vocabulary)
    needed, there = count * (TRAINED_BYTES if trained_here else LOADED_BYTES), psutil.virtual_memory().total
    if needed > there:
        raise WordmillError(
            f"model: {count:,} parameters or more need {needed / 1e9:,.0f} GB of memory, and this machine has "
            f"{there / 1e9:,.0f}; lower n_layer, d_model, d_ff or tokenizer.vocab_size"
        )


def start_from(given: Schema) -> None:
    if given.pretrain.start_from:
        place = Path(given.pretrain.start_from)
        with _named("pretrain.start_from"):
            config, vocab_size = _model_config(place, given.model)
        check_shape(place, config, given.model)
        trained = given.tokenizer.kind in ("bpe", "sentencepiece")
        if trained and vocab_size < given.tokenizer.vocab_size:
            raise WordmillError(
                f"pretrain.start_from: {place} has {vocab_size:,} tokens, tokenizer.vocab_size is "
                f"{given.tokenizer.vocab_size:,}; take the model's own, with tokenizer.kind: file and tokenizer.path"
            )


def continue_from(given: Schema) -> None:
    if given.pretrain.continue_from:
        place = Path(given.pretrain.continue_from)
        with _named("pretrain.continue_from"):
            if not place.is_dir():
                raise WordmillError(f"{place}: no such folder; name one of checkpoints, as runs/pretrain/NAME is")
            steps = [path.parent.name.removeprefix("step-") for path in place.glob("step-*/state.json")]
            newest = max((int(step) for step in steps if step.isdecimal()), default=0)
            if not newest:
                raise WordmillError(f"{place}: holds no checkpoint; name a folder of them, as runs/pretrain/NAME is")
            if newest >= given.pretrain.steps:
                raise WordmillError(f"{place}: is after step {newest}; raise pretrain.steps above it")


def preference_files(given: Schema) -> None:
    config = given.preferences
    if config.source == "hub":
        _check_dataset(config.hub, "preferences")
    if config.source == "files":
        with _named("preferences.paths"), tempfile.TemporaryDirectory() as scratch:
            for path in _readable(find(config.paths, "preferences.paths")):
                first = islice(read_rows(path, Path(scratch)), 1)
                next(converted(first, config.shape, Account()), None)


def enough_pairs(given: Schema) -> None:
    if 0 < given.preferences.pairs < given.dpo.batch_size:
        raise WordmillError(
            f"dpo.batch_size: {given.dpo.batch_size} is more than preferences.pairs, {given.preferences.pairs}; "
            "lower it or raise preferences.pairs"
        )


def minimal_pairs(given: Schema) -> None:
    if given.evaluate.minimal_pairs:
        with _named("evaluate.minimal_pairs"), tempfile.TemporaryDirectory() as scratch:
            for path in _readable(minimal_pair_files.named(given.evaluate.minimal_pairs)):
                next(minimal_pair_files.of_one_file(path, Path(scratch)), None)


def device(given: Schema) -> None:
    machine.check(given.compute)


CHECKS: dict[str, tuple[Callable[[Schema], None], ...]] = {
    "download": (corpus_files, corpus_folder),
    "tokenizer": (tokenizer_files,),
    "shards": (),
    "pretrain": (device, several_processes, attention, memory, start_from, continue_from),
    "preferences": (preference_files, device),
    "dpo": (enough_pairs, device),
    "evaluate": (minimal_pairs, device),
    "samples": (device,),
    "export": (device,),
    "report": (),
}


def check(given: Schema, stages: Iterable[str] = CHECKS) -> None:
    """Raises WordmillError for the first thing that one of these stages would refuse."""
    for run in dict.fromkeys(run for stage in stages for run in CHECKS.get(stage, ())):
        run(given)


def check_from(stage: str) -> None:
    """Check the present params.yaml for `stage` and all that follows from it. Raises WordmillError."""
    if os.environ.get("WORDMILL_PREFLIGHT") != "own":
        check(schema.check(params.document()), following(stage))


def following(stage: str) -> list[str]:
    """`stage` and those that need what it makes, by dvc.yaml."""
    found: list[str] = []
    made: set[str] = set()
    for each in declared():
        if each.name == stage or made & set(each.deps):
            found.append(each.name)
            made |= set(each.outs)
    return found or [stage]


@contextmanager
def _named(key: str) -> Iterator[None]:
    """The key of params.yaml before the message of whatever goes wrong with the files that it names."""
    try:
        yield
    except WordmillError as error:
        raise WordmillError(str(error) if str(error).startswith(f"{key}: ") else f"{key}: {error}") from None
    except OSError as error:
        name = params.SHOWN.repr(str(error.filename or ""))
        raise WordmillError(f"{key}: {name}: {error.strerror or error}; see that it can be read") from None


def _open(path: Path) -> None:
    with path.open("rb") as file:
        file.read(1)


def _readable(paths: list[Path]) -> Iterator[Path]:
    """Those files, all of which are opened, whose first record can be read in no time. Raises WordmillError."""
    for path in paths:
        if not path.is_file():
            raise WordmillError(f"{path}: not found")
        _open(path)
    for path in islice(paths, OPENED):
        suffix, packing = kind(path.name) or ("", "")
        whole = suffix == ".json" or (suffix == ".parquet" and packing)
        if not whole or path.stat().st_size <= (SMALL >> 4 if packing else SMALL):
            yield path


def _parameters_at_least(model: ModelConfig, vocab_size: int) -> int:
    """Queries, outputs and two matrices of the feed-forward in each layer, and the embedding: all models have these."""
    layer = 2 * model.d_model * model.n_head * model.d_head + 2 * model.d_model * model.d_ff
    return model.n_layer * layer + vocab_size * model.d_model


def _check_dataset(config: CorpusConfig, section: str) -> None:
    with _named(f"{section}.dataset"):
        if config.dataset_is_local and not stat.S_ISDIR(Path(config.dataset).stat().st_mode):
            raise WordmillError(f"{config.dataset}: not a folder")


def _model_config(place: Path, wanted: ModelConfig) -> tuple[ModelConfig, int]:
    """What a model folder says of itself, its shape and vocabulary. Raises WordmillError."""
    _, config, rows = described(place, wanted.attention)
    if not any((place / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise WordmillError(f"{place}: no weights there (model.safetensors is missing)")
    return config, rows
