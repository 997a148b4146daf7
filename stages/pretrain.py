"""Stage `pretrain`: shards and a tokenizer in, a base model out.

Writes models/base/ (Hugging Face layout), reports/pretrain.json (the last figures) and reports/pretrain/curve.csv
(what was logged on the way, less what depends on the machine's speed, which goes to MLflow only).
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from llm import checkpoint
from llm.batches import Batches
from llm.compute import Compute, ComputeConfig
from llm.corpus.documents import sample
from llm.errors import WordmillError
from llm.evaluate import score_documents
from llm.generate import Sampling, generate
from llm.model import folder
from llm.model.attention import check_attention
from llm.model.config import ModelConfig
from llm.model.counts import flops_per_token, parameter_table, parameters
from llm.model.hf_configs import read_config
from llm.model.transformer import Transformer
from llm.parallel import Parallel, check
from llm.pretrain import PretrainConfig, last_before_decay, pretrain
from llm.shards import ShardSet
from llm.tokenizer.tokenizer import Tokenizer
from llm.training_state import Record
from stages.device import TAKEN, gpu_of, hold
from stages.params import build
from stages.records import Teller, summary, write_curve
from stages.stage import Stage, main
from stages.start import check_shape
from stages.torchrun import Process, launched, nodes

OUT = Path("models/base")
TOKENIZER = Path("data/tokenizer")
SHARDS = Path("data/shards/train")


@dataclass(frozen=True)
class Params:
    model: ModelConfig
    pretrain: PretrainConfig
    compute: ComputeConfig


def run(params: Params, stage: Stage) -> None:
    config = params.pretrain
    compute = Compute(params.compute)
    several = config.parallel != "none"
    on_this_machine = config.processes // nodes(config.processes) if several else 1
    check(config.parallel, on_this_machine, compute)
    check_attention(params.model, compute.device)
    on_gpu = compute.device.type == "cuda"
    taken = hold(stage.name, compute.device, on_this_machine if on_gpu else 1)
    if several and on_gpu:
        os.environ[TAKEN] = ",".join(str(device.index) for device in taken)
    compute = compute.on(taken[0])
    tokenizer = Tokenizer.load(TOKENIZER)
    shards = ShardSet.open(SHARDS, tokenizer.fingerprint)
    batches = Batches(shards, params.model.block_size, config.batch_size, config.seed, config.packing)
    model = beginning(params, tokenizer)
    rows = parameters(params.model, tokenizer.vocab_size)
    chosen = f" ({compute.why})" if compute.why else ""
    shared = f", shared by {config.processes} processes: {config.parallel}" if several else ""
    print(f"{sum(rows.values()):,} parameters on {compute}{chosen}{shared}", flush=True)
    print(parameter_table(params.model, tokenizer.vocab_size), flush=True)
    print(repeats(batches, config.packing), flush=True)
    stage.dataset("shards", "data/shards/train", shards.digest, {"tokens": shards.tokens})
    stage.tags({"device": str(compute)})
    if (before_decay := last_before_decay(config)) is not None:
        stage.kept_steps.add(before_decay)  # a longer run shares its beginning
    records: list[Record] = []
    with stage.stopping() as stopping, Teller(stage, config.steps) as tell:
        if several:
            told = launched("stages.pretrain", asdict(params), config.processes, stage.scratch, stopping)
        else:
            told = trained(model, tokenizer, batches, params, compute, stage.scratch, stopping, Parallel())
        for record in told:
            records.append(record)
            tell(record)
    if several and config.steps:
        take_weights(model, stage.scratch, config.steps)
    folder.save(model.cpu(), OUT, TOKENIZER, tokenizer.end_of_text, tokenizer.begin_of_text)
    write_curve(records, Path("reports/pretrain/curve.csv"))
    extra = {
        "parameters": sum(rows.values()),
        "flops": flops_per_token(params.model, tokenizer.vocab_size) * config.steps * batches.tokens_per_batch,
        "epochs": config.steps / batches.batches_per_epoch,
        "repeated_share": batches.repeated_share,
    }
    summary(records, Path("reports/pretrain.json"), extra)
    stage.artifact(OUT / "config.json", "model")


def repeats(batches: Batches, packing: str) -> str:
    """One line on the targets that fill sequences up."""
    advice = "; pretrain.packing: documents_once repeats none" if packing == "documents" else ""
    share = f"{batches.repeated_share:.1%} of an epoch's targets are repeats"
    return f"{share} that fill sequences of {batches.block_size} tokens (packing: {packing}){advice}"


def trained(
    model: Transformer,
    tokenizer: Tokenizer,
    batches: Batches,
    params: Params,
    compute: Compute,
    scratch: Path,
    stopping: Callable[[], bool],
    parallel: Parallel,
) -> Iterator[Record]:
    """The training loop, with validation and samples by this stage's corpus and tokenizer."""
    config = params.pretrain
    validation = sample(Path("data/corpus/val"), config.eval_documents)

    def evaluate(model: Transformer) -> dict[str, float]:
        scores = score_documents(model, tokenizer, validation, compute).summary(seed=0)
        return {name: scores[name] for name in ("loss", "bits_per_byte")}

    def write(model: Transformer) -> str:
        room = min(120, params.model.block_size - 1)
        start = [[tokenizer.begin_of_text]]
        sampling, end, size = Sampling(temperature=0.8), tokenizer.end_of_text, tokenizer.vocab_size
        (ids,) = generate(model, start, room, sampling, config.seed, end, compute, vocab_size=size)
        return tokenizer.decode(ids)

    origin = {"tokenizer": tokenizer.fingerprint, "shards": batches.shards.digest}
    return pretrain(model, batches, config, compute, evaluate, write, scratch, stopping, parallel, origin)


def one_of_several(process: Process) -> None:
    """What each process does that torchrun started: the same training on its share of every batch."""
    params = build(Params, process.params, "job.json")
    config = params.pretrain
    threads = max(1, params.compute.threads // process.on_this_machine)
    gpu = gpu_of(process.local_rank) if torch.cuda.is_available() else None
    compute = Compute(replace(params.compute, threads=threads), gpu)
    check(config.parallel, process.on_this_machine, compute)
    parallel = Parallel(config.parallel, compute.device.type)
    tokenizer = Tokenizer.load(TOKENIZER)
    shards = ShardSet.open(SHARDS, tokenizer.fingerprint)
    batches = Batches(
        shards,
        params.model.block_size,
        config.batch_size,
        config.seed,
        config.packing,
        parallel.rank,
        parallel.world,
    )
    model = beginning(params, tokenizer)
    scratch = process.scratch
    for record in trained(model, tokenizer, batches, params, compute, scratch, process.stopping, parallel):
        process.tell(record)
    parallel.close()


def take_weights(model: Transformer, scratch: Path, steps: int) -> None:
    """Into `model`, those of the checkpoint after the last step, which the processes wrote. Raises WordmillError."""
    found = checkpoint.latest(scratch)
    if found is None or found[0] != steps:
        raise WordmillError(f"{scratch}: the checkpoint of the last step is damaged or gone; run `dvc repro` again")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(found[1][f"model.{name}"])


def beginning(params: Params, tokenizer: Tokenizer) -> Transformer:
    """The model before its first step. Raises WordmillError where `pretrain.start_from` is not of `model`'s shape."""
    model = Transformer(params.model, tokenizer.vocab_size)
    if not params.pretrain.start_from:
        model.initialise(params.pretrain.seed)
        return model
    place = Path(params.pretrain.start_from)
    check_vocabulary(place, tokenizer)
    given = folder.load(place, vocab_size=tokenizer.vocab_size)
    check_shape(place, given.config, params.model)
    model.load_state_dict(given.state_dict())
    print(f"begins with the weights of {place}", flush=True)
    return model


def check_vocabulary(place: Path, tokenizer: Tokenizer) -> None:
    """See that the model in `place` has the tokenizer's vocabulary, or is padded beyond it. Raises WordmillError."""
    rows = read_config(place).get("vocab_size")
    if rows == tokenizer.vocab_size:
        return
    advice = "take the model's own, with tokenizer.kind: file and tokenizer.path"
    try:
        own = Tokenizer.load(place).fingerprint
    except WordmillError:
        own, advice = "", f"put its tokenizer.json into {place}, which shows whether it is padded, or {advice}"
    if own != tokenizer.fingerprint or not isinstance(rows, int) or rows < tokenizer.vocab_size:
        raise WordmillError(
            f"pretrain.start_from: {place} has {rows} tokens, the tokenizer {tokenizer.vocab_size}; {advice}"
        )
    print(f"leaves out {rows - tokenizer.vocab_size} rows of {place}'s vocabulary that belong to no token", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["process"]:
        Process(Path(sys.argv[2])).run(one_of_several)
    else:
        main("pretrain", Params, run)
