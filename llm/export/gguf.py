"""Models as GGUF, the file of llama.cpp and of what is built on it: weights, vocabulary and settings in one.

Written with llama.cpp's own `gguf` package, in three precisions: `f32`, `f16`, and `q8_0`, which keeps 32 weights of a
row as eight-bit integers under one fp16 scale. Vectors (norms, biases) and learned positions stay fp32 in all three, as
llama.cpp's own converter leaves them; matrices whose rows 32 does not divide are fp16 in `q8_0`.

Three layouts have an architecture there: Llama, Qwen3, and GPT-2 with GELU. Two things differ from Hugging Face's:

- Llama's queries and keys are turned in neighbouring pairs (2i, 2i + 1), not in halves (i, i + E/2), so the rows of
  their matrices are put in that order. A file without this loads and writes nonsense. Qwen3 is turned in halves.
- a vocabulary names one of the ways of cutting text into words that are built in: ours are `gpt-2`, `dbrx` (GPT-4's)
  and `gpt-4o`. SentencePiece and foreign tokenizers are not exported.

Texts begin with the end-of-text token, as in training: the file asks llama.cpp to put it there.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, TokenType

from llm.errors import WordmillError
from llm.export.fits import gguf_architecture as architecture
from llm.model.exact import unknown_part
from llm.model.layouts import LAYOUTS
from llm.model.transformer import Transformer
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.patterns import CL100K, GPT2, O200K, byte_characters
from llm.tokenizer.tokenizer import Tokenizer

Precision = Literal["f32", "f16", "q8_0"]
PRECISIONS: dict[str, tuple[GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
BLOCK = 32  # weights that share a scale in q8_0
CUTS = {GPT2: "gpt-2", CL100K: "dbrx", O200K: "gpt-4o"}  # llama.cpp's names for our patterns
# Our names by layout, as Hugging Face has them, and theirs; `N` is the layer.
NAMES = {
    "llama": {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers.N.input_layernorm": "blk.N.attn_norm",
        "model.layers.N.post_attention_layernorm": "blk.N.ffn_norm",
        "model.layers.N.self_attn.q_norm": "blk.N.attn_q_norm",
        "model.layers.N.self_attn.k_norm": "blk.N.attn_k_norm",
        "model.layers.N.self_attn.q_proj": "blk.N.attn_q",
        "model.layers.N.self_attn.k_proj": "blk.N.attn_k",
        "model.layers.N.self_attn.v_proj": "blk.N.attn_v",
        "model.layers.N.self_attn.o_proj": "blk.N.attn_output",
        "model.layers.N.mlp.gate_proj": "blk.N.ffn_gate",
        "model.layers.N.mlp.up_proj": "blk.N.ffn_up",
        "model.layers.N.mlp.down_proj": "blk.N.ffn_down",
    },
    "gpt2": {
        "transformer.wte": "token_embd",
        "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm",
        "lm_head": "output",
        "transformer.h.N.ln_1": "blk.N.attn_norm",
        "transformer.h.N.ln_2": "blk.N.ffn_norm",
        "transformer.h.N.attn.c_attn": "blk.N.attn_qkv",
        "transformer.h.N.attn.c_proj": "blk.N.attn_output",
        "transformer.h.N.mlp.c_fc": "blk.N.ffn_up",
        "transformer.h.N.mlp.c_proj": "blk.N.ffn_down",
    },
}
NAMES["qwen3"] = NAMES["llama"]
Rows = Callable[[np.ndarray], np.ndarray]


def write(model: Transformer, tokenizer: Tokenizer, path: Path, precision: Precision, name: str) -> None:
    """Write `model` (fp32, on the CPU) and its tokenizer; equal models give equal bytes.

    Raises WordmillError for a model that llama.cpp does not know, and for a tokenizer that is not byte-level BPE or has
    a pattern that llama.cpp does not have.
    """
    config, kind = model.config, architecture(model.config)
    if (part := unknown_part(model)) or kind is None:
        raise WordmillError(
            f"export.formats: gguf: llama.cpp has no architecture for {part or 'this model'}; "
            "leave the gguf formats out"
        )
    if not isinstance(tokenizer, ByteBPE) or not tokenizer.definition.merges:
        raise WordmillError("export.formats: gguf: the tokenizer is not a byte-level BPE; leave the gguf formats out")
    if tokenizer.definition.pattern not in CUTS:
        raise WordmillError(
            "export.formats: gguf: llama.cpp does not have this tokenizer's pattern, only gpt2, cl100k and o200k; "
            "leave the gguf formats out"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, kind)
    writer.add_name(name)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_head)
    writer.add_file_type(PRECISIONS[precision][1])
    if kind == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_head_count_kv(config.n_kv_head)
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_dimension_count(config.d_head)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_key_length(config.d_head)
        writer.add_value_length(config.d_head)
        writer.add_vocab_size(model.vocab_size)
    _add_vocabulary(writer, tokenizer, model.vocab_size)
    for theirs, weight, rows in _tensors(model, kind):
        values = np.ascontiguousarray(rows(weight))
        stored = _stored(theirs, values, precision)
        writer.add_tensor(theirs, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_weights(path: Path, model: Transformer) -> None:
    """Give `model` the weights of a file that `write` made of one of its shape, as far as they were kept."""
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    kind = architecture(model.config)
    assert kind is not None
    for theirs, weight, rows in _tensors(model, kind):
        tensor = stored[theirs]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
        weight[rows(np.arange(len(weight)))] = values  # each row goes back to where it was taken from


def _tensors(model: Transformer, kind: str) -> list[tuple[str, np.ndarray, Rows]]:
    """Their name, our weight (a view that may be written to), and the order that they have its rows in."""
    found = []
    for ours, view in LAYOUTS[kind].views(model).items():
        stem, dot, ending = ours.rpartition(".")
        if ours.startswith("transformer.h.") and view.ndim == 2:
            view = view.t()  # GPT-2's folders hold matrices as (in, out); llama.cpp wants (out, in)
        words = stem.split(".")
        layer = next((word for word in words if word.isdigit()), "")
        theirs = NAMES[kind][".".join("N" if word == layer else word for word in words)].replace("N", layer)
        heads = {"attn_q": model.config.n_head, "attn_k": model.config.n_kv_head}.get(theirs.rpartition(".")[2], 0)
        rows = _in_pairs(heads) if kind == "llama" and heads else _as_they_are
        found.append((theirs + dot + ending, view.numpy(), rows))
    return found


def _as_they_are(values: np.ndarray) -> np.ndarray:
    return values


def _in_pairs(heads: int) -> Rows:
    """Rows of each head from halves to neighbouring pairs: 0, E/2, 1, E/2 + 1, …"""

    def rows(values: np.ndarray) -> np.ndarray:
        halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)

    return rows


def _stored(name: str, values: np.ndarray, precision: Precision) -> GGMLQuantizationType:
    if values.ndim == 1 or name == "position_embd.weight":
        return GGMLQuantizationType.F32
    if precision == "q8_0" and values.shape[1] % BLOCK:
        return GGMLQuantizationType.F16
    return PRECISIONS[precision][0]


def _add_vocabulary(writer: GGUFWriter, tokenizer: ByteBPE, size: int) -> None:
    characters = byte_characters()
    names = ["".join(characters[byte] for byte in token) for token in tokenizer.tokens]
    names += [""] * (size - len(names))
    types = [TokenType.NORMAL] * size
    for token, number in tokenizer.special_tokens.items():
        names[number], types[number] = token, TokenType.CONTROL
    for number, written in enumerate(names):
        if not written:
            names[number], types[number] = f"[UNUSED{number}]", TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(CUTS[tokenizer.definition.pattern])
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_token_merges([f"{names[left]} {names[right]}" for left, right in tokenizer.definition.merges])
    writer.add_bos_token_id(tokenizer.begin_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_pad_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(True)
