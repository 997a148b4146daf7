"""The readers of files that others may have written or that a disk may have damaged, with a small valid input each.

A reader here also uses what it has read, since a damaged file that is accepted must not fail later.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from benchmarks.shapes import llama
from llm import checkpoint
from llm.corpus import documents
from llm.export import int8
from llm.minimal_pairs import read_minimal_pairs
from llm.model import folder
from llm.model.transformer import Transformer
from llm.preferences import Pair, read_pairs, write_pairs
from llm.shards import ShardSet, write_index, write_shards
from llm.tokenizer import sentencepiece
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.config import PATTERNS
from llm.tokenizer.foreign import read_file
from llm.tokenizer.patterns import byte_characters
from llm.tokenizer.tokenizer import END_OF_TEXT, Encoded, Tokenizer
from pipeline import presets
from stages import params, schema
from tests.fuzz.mutations import Form
from tests.fuzz.runner import Reader

ROOT = Path(__file__).parents[2]
TINY = llama(n_layer=1, n_head=2, n_kv_head=1, d_model=8, d_ff=8, block_size=16)
GPT2 = replace(TINY, position="learned", norm="layernorm", feed_forward="gelu", bias=True, n_kv_head=2)
QWEN3 = replace(TINY, qk_norm=True, tie_head=False)
OWN = replace(TINY, position="none")
WORDS = "the cat sat on the mat, the cat and the hat\n" * 40
BPE = ByteBPE.from_merges([(116, 104), (256, 101), (97, 116)], PATTERNS["gpt2"], [END_OF_TEXT])


def write_model(config: Any) -> Callable[[Path], None]:
    def write(at: Path) -> None:
        beside = at.with_name(f"{at.name} tokenizer")
        BPE.save(beside)
        model = Transformer(config, BPE.vocab_size)
        model.initialise(1)
        folder.save(model, at, beside, BPE.end_of_text)

    return write


def read_model(at: Path) -> None:
    model = folder.load(at)
    with torch.no_grad():
        model(torch.zeros(1, 2, dtype=torch.long))
    Tokenizer.load(at)


def write_sharded_model(at: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 8}
    config = LlamaConfig(**shape, intermediate_size=8, vocab_size=64, max_position_embeddings=16)
    LlamaForCausalLM(config).save_pretrained(at, max_shard_size="3KB")
    assert (at / "model.safetensors.index.json").exists()


def read_sharded_model(at: Path) -> None:
    folder.load(at)


def write_int8(at: Path) -> None:
    write_model(TINY)(at / "whole")
    int8.save(at / "whole", at / "int8")


def read_int8(at: Path) -> None:
    int8.read_weights(at / "int8", Transformer(TINY, BPE.vocab_size))


def use(tokenizer: Tokenizer) -> None:
    """What the stages do with a tokenizer. The text must come back."""
    assert tokenizer.decode(tokenizer.encode("the cat\n\x00 \u00e9")) == "the cat\n\x00 \u00e9"
    assert 0 <= tokenizer.end_of_text < tokenizer.vocab_size < 2**32
    assert not set(tokenizer.encode(" ".join(tokenizer.special_tokens))) & set(tokenizer.special_tokens.values())
    _ = tokenizer.fingerprint


def load_tokenizer(at: Path) -> None:
    use(Tokenizer.load(at))


def write_library_tokenizer(at: Path) -> None:
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=262,
        show_progress=False,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    theirs.train_from_iterator([WORDS], trainer)
    theirs.add_tokens(["<extra>"])
    theirs.save(str(at / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "bos_token": {"content": "<|begin|>"},
    }
    (at / "tokenizer_config.json").write_text(json.dumps(config))


def write_merge_list(at: Path) -> None:
    characters = byte_characters()
    names = ["".join(characters[byte] for byte in token) for token in BPE.tokens if token]
    merges = [f"{names[left]} {names[right]}" for left, right in BPE.definition.merges]
    (at / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    ids = {name: number for number, name in enumerate(names)} | {END_OF_TEXT: len(names)}
    (at / "encoder.json").write_text(json.dumps(ids), encoding="utf-8")


def read_merge_list(at: Path) -> None:
    use(read_file(at / "vocab.bpe"))


def write_sentencepiece(at: Path) -> None:
    sentencepiece.train([WORDS], "unigram", 272, [END_OF_TEXT]).save(at)


def write_token_shards(at: Path) -> None:
    ids = np.array([[*BPE.encode("the cat"), BPE.end_of_text]] * 6, np.uint32)
    ends = np.arange(7) * ids.shape[1]
    lengths = np.full(6, 7)
    infos = write_shards([Encoded(ids.reshape(-1), ends, lengths)], BPE, at, "part", 14)
    write_index(at, infos, BPE)


def read_token_shards(at: Path) -> None:
    shards = ShardSet.open(at)
    for number in range(len(shards.documents)):
        shards.document(number)
    shards.token_counts()
    ShardSet.open(at, verify=False)


def write_checkpoints(at: Path) -> None:
    for step in (1, 2):
        checkpoint.write(at, step, {"weight": torch.full((4,), float(step))}, {"loss": [1.5, 2.5]})


def read_checkpoints(at: Path) -> None:
    found = checkpoint.latest(at)
    assert found is None or (found[0] in (1, 2) and (found[1]["weight"] == found[0]).all())


def read_summed_checkpoints(at: Path) -> None:
    """With checksums that match the damaged files, so that these are read."""
    for path in at.iterdir():
        files = (path / checkpoint.TENSORS, path / checkpoint.STATE)
        if all(file.is_file() for file in files):
            sums = [f"{documents.sha256(file)}  {file.name}\n" for file in files]
            (path / checkpoint.SUMS).write_text("".join(sums))
    checkpoint.latest(at)


def write_params(at: Path) -> None:
    (at / "params.yaml").write_bytes((ROOT / "presets/default.yaml").read_bytes())


def read_params(at: Path) -> None:
    schema.check(params.document(at / "params.yaml"))


def write_presets(at: Path) -> None:
    (at / "presets").mkdir()
    for name in ("default", "nanolm"):
        (at / f"presets/{name}.yaml").write_bytes((ROOT / f"presets/{name}.yaml").read_bytes())


def read_presets(at: Path) -> None:
    os.chdir(at)
    presets.from_preset("nanolm", {"pretrain.seed": 3})


def write_corpus(at: Path) -> None:
    splits = {}
    for split in ("train", "val", "test"):
        (at / split).mkdir()
        rows = [documents.Row(f"{i:04x}", f"{WORDS[: 20 + i]}".encode(), "here") for i in range(5)]
        digest = documents.write_part(at / split / "part-00000.parquet", rows)
        splits[split] = {
            "documents": 5,
            "bytes": sum(len(row.text) for row in rows),
            "parts": [{"name": "part-00000.parquet", "sha256": digest}],
        }
    (at / "manifest.json").write_text(json.dumps({"source": "files", "digest": "0" * 64, "splits": splits}))


def read_corpus(at: Path) -> None:
    documents.manifest(at)
    documents.sample(at / "train", 3)
    list(documents.documents(at / "val", verify=True))
    list(documents.utf8_batches(at / "test"))
    documents.document_sources(at / "train/part-00000.parquet")


def write_preference_pairs(at: Path) -> None:
    pairs = [Pair(f"Once {i}", " there was", " was there", "given", "test" if i % 3 else "train") for i in range(9)]
    write_pairs(pairs, at / "pairs.parquet")


def read_preference_pairs(at: Path) -> None:
    for split in ("train", "test"):
        texts = read_pairs(at / "pairs.parquet", split)
        assert all(isinstance(text, str) for text in (*texts.prompt, *texts.chosen, *texts.rejected))


def write_minimal_pairs(at: Path) -> None:
    rows = [{"sentence_good": f"They sit {i}.", "sentence_bad": f"They sits {i}.", "UID": "number"} for i in range(5)]
    (at / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (at / "pairs.json").write_text(json.dumps(rows))


def read_both_minimal_pairs(at: Path) -> None:
    read_minimal_pairs((str(at / "pairs.jsonl"), str(at / "pairs.json")), at)


WEIGHTS: dict[str, Form] = {"config.json": "json", "*.safetensors": "safetensors"}
TOKENIZER: dict[str, Form] = {"tokenizer.json": "json", "tokenizer_config.json": "json"}
READERS: dict[str, Reader] = {
    "Llama folder": Reader(write_model(TINY), read_model, {**WEIGHTS, **TOKENIZER}),
    "Qwen3 folder": Reader(write_model(QWEN3), read_model, WEIGHTS),
    "GPT-2 folder": Reader(write_model(GPT2), read_model, WEIGHTS),
    "own model folder": Reader(write_model(OWN), read_model, WEIGHTS),
    "sharded model folder": Reader(
        write_sharded_model, read_sharded_model, {"*.index.json": "json", "*.safetensors": "safetensors"}
    ),
    "int8 folder": Reader(write_int8, read_int8, {"int8/config.json": "json", "int8/*.safetensors": "safetensors"}),
    "tokenizer.json": Reader(BPE.save, load_tokenizer, TOKENIZER),
    "tokenizer.json for the library": Reader(write_library_tokenizer, load_tokenizer, TOKENIZER),
    "merge list": Reader(write_merge_list, read_merge_list, {"vocab.bpe": "text", "encoder.json": "json"}),
    "SentencePiece": Reader(write_sentencepiece, load_tokenizer, {"tokenizer.model": "bytes"}),
    "token shards": Reader(write_token_shards, read_token_shards, {"index.json": "json", "*.bin": "bytes"}),
    "checkpoints": Reader(
        write_checkpoints,
        read_checkpoints,
        {"*/state.json": "json", "*/SHA256SUMS": "text", "*/tensors.safetensors": "safetensors"},
    ),
    "checkpoints with right checksums": Reader(
        write_checkpoints, read_summed_checkpoints, {"*/state.json": "json", "*/tensors.safetensors": "safetensors"}
    ),
    "params.yaml": Reader(write_params, read_params, {"params.yaml": "yaml"}),
    "presets": Reader(write_presets, read_presets, {"presets/*.yaml": "yaml"}),
    "corpus": Reader(write_corpus, read_corpus, {"manifest.json": "json", "*/*.parquet": "bytes"}),
    "pairs.parquet": Reader(write_preference_pairs, read_preference_pairs, {"pairs.parquet": "bytes"}),
    "minimal pairs": Reader(
        write_minimal_pairs, read_both_minimal_pairs, {"pairs.jsonl": "jsonl", "pairs.json": "json"}
    ),
}
