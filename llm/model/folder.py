"""Models on disk in Hugging Face's layout: `config.json`, `model.safetensors`, and the tokenizer's files.

`transformers` opens such a folder and gives the same logits, as long as it has a class for the model's mixture of
parts; `llm.model.layouts` says for which, and what becomes of the others. Folders from elsewhere are read too: Llama,
Mistral, Qwen2, Qwen3 and GPT-2, in one file or in shards with an index, in any floating format.

The safetensors file carries one metadata key only, because the library writes several in a random order
(huggingface/safetensors #584) and rebuilt files must not differ.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from llm.errors import WordmillError
from llm.model.config import AttentionKind, ModelConfig
from llm.model.exact import unknown_part
from llm.model.hf_configs import REMEDY, described
from llm.model.layouts import ABSENT, LAYOUTS, READ_AS, Layout, layout_for
from llm.model.transformer import Transformer
from llm.model.weight_files import FLOATS, WEIGHTS, Stored, stored_tensors, verify_sums
from llm.strict_json import quoted
from llm.tokenizer.tokenizer import files


def save(model: Transformer, folder: Path, tokenizer: Path, end_of_text: int, begin_of_text: int | None = None) -> None:
    """Write the model and a copy of the tokenizer's files.

    `end_of_text` is the id that ends a document. `begin_of_text` is the one that begins it, by default the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in files(tokenizer):
        shutil.copyfile(tokenizer / name, folder / name)
    name = layout_for(model)
    config = {
        "model_type": name,
        "vocab_size": model.vocab_size,
        "bos_token_id": end_of_text if begin_of_text is None else begin_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    } | LAYOUTS[name].settings(model.config)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    views = {name: view.contiguous() for name, view in LAYOUTS[name].views(model).items()}
    save_file(views, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)  # safetensors lets only its writer read it


def load(folder: Path, attention: AttentionKind = "fused", vocab_size: int | None = None) -> Transformer:
    """The model in `folder`, fp32 on the CPU, without dropout.

    Vocabularies from elsewhere may be padded: rows without a token follow the tokenizer's last one. `vocab_size`, the
    tokenizer's, leaves them out; logits of all tokens stay as they are.
    Names and shapes are compared with what config.json says before any memory is taken for weights. Raises
    WordmillError for a missing or damaged folder, and for models that have what ours cannot have.
    """
    settings, config, rows = described(folder, attention)
    layout = LAYOUTS[READ_AS[settings["model_type"]]]
    tensors = stored_tensors(folder)
    absent = _check_names(folder, tensors, layout, config, rows, settings["model_type"])
    if vocab_size is not None and rows < vocab_size:
        raise WordmillError(
            f"{folder}: the model has {rows:,} tokens, its tokenizer {vocab_size:,}; take the model's own tokenizer"
        )
    verify_sums(folder)
    model = Transformer(config, vocab_size or rows)
    if layout is not LAYOUTS["wordmill"] and (part := unknown_part(model)):
        raise WordmillError(f"{folder}: a {settings['model_type']} model cannot be read into {part}")
    with torch.no_grad():
        for name, view in layout.views(model).items():
            if name in absent:
                view.zero_()
                continue
            found = tensors[_name_there(tensors, name, layout)].read()
            view.copy_(found if found.shape == view.shape else found[: len(view)])  # without the padding
            if not view.isfinite().all():
                raise WordmillError(f"{folder}: {quoted(name)} holds NaN or infinity; {REMEDY}")
    return model


def fingerprint(model: Transformer) -> str:
    """SHA-256 over all weights: equal exactly when every bit is."""
    whole = hashlib.sha256()
    for name, weight in sorted(LAYOUTS[layout_for(model)].views(model).items()):
        whole.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def _check_names(
    folder: Path, tensors: Mapping[str, Stored], layout: Layout, config: ModelConfig, vocab_size: int, kind: str
) -> set[str]:
    """See that the tensors are those of such a model; the names of those that may be absent and are."""
    if config.n_layer > len(tensors):
        raise WordmillError(
            f"{folder}: {len(tensors)} tensors are too few for the {config.n_layer} layers it should have"
        )
    with torch.device("meta"):
        views = layout.views(Transformer(config, vocab_size))
    absent, used = set(), set()
    for name, view in views.items():
        there = _name_there(tensors, name, layout)
        if there not in tensors and name.endswith(ABSENT.get(kind, ())):
            absent.add(name)
            continue
        found = tensors.get(there)
        if found is None or found.shape != tuple(view.shape):
            shape = "is missing" if found is None else f"has the shape {list(found.shape)}"
            raise WordmillError(f"{folder}: {name} {shape}; config.json says {list(view.shape)}")
        if found.dtype not in FLOATS:
            raise WordmillError(f"{folder}: {name} is quantised ({found.dtype}); give a float copy")
        used.add(there)
    spare = layout.ignored + ("lm_head.weight",) * config.tie_head
    unread = [name for name in tensors if name not in used and not name.endswith(spare)]
    if unread:
        raise WordmillError(f"{folder}: {quoted(min(unread))} has no place in a {kind} model here")
    return absent


def _name_there(tensors: Mapping[str, Stored], name: str, layout: Layout) -> str:
    return name if name in tensors else name.removeprefix(layout.prefix)
