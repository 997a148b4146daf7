"""Models on disk in Hugging Face's layout: `config.json`, `model.safetensors`, and the tokenizer's files.

`transformers` opens such a folder and gives the same logits, as long as it has a class for the model's mixture of
parts; `llm.model.layouts` says for which, and what becomes of the others. Folders from elsewhere are read too: Llama,
GPT-2 and Qwen3, in one file or in shards with an index, in any floating format. Pickled weights are not.

The safetensors file carries one metadata key only, because the library writes several in a random order
(huggingface/safetensors #584) and rebuilt files must not differ.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.errors import ConfigError, WordmillError
from llm.model.config import AttentionKind
from llm.model.exact import unknown_part
from llm.model.layouts import LAYOUTS, Layout, layout_for
from llm.model.transformer import Transformer
from llm.tokenizer.tokenizer import files

WEIGHTS = "model.safetensors"


def save(model: Transformer, folder: Path, tokenizer: Path, end_of_text: int) -> None:
    """Write the model and a copy of the tokenizer's files; `end_of_text` is the id between documents."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in files(tokenizer):
        shutil.copyfile(tokenizer / name, folder / name)
    name = layout_for(model)
    config = {
        "model_type": name,
        "vocab_size": model.vocab_size,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    } | LAYOUTS[name].settings(model.config)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    views = {name: view.contiguous() for name, view in LAYOUTS[name].views(model).items()}
    save_file(views, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)  # safetensors lets only its writer read it


def load(folder: Path, attention: AttentionKind = "fused") -> Transformer:
    """The model in `folder`, fp32 on the CPU, without dropout.

    Raises WordmillError for a missing or damaged folder, and for models that have what ours cannot have.
    """
    try:
        settings = json.loads((folder / "config.json").read_text())
        layout = _layout(settings)
        model = Transformer(layout.config(settings, attention), settings["vocab_size"])
        tensors = _tensors(folder)
    except FileNotFoundError:
        raise WordmillError(f"{folder}: no model there (config.json is missing)") from None
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise WordmillError(f"{folder}: damaged ({error}); `dvc checkout` brings it back") from None
    except ConfigError as error:
        raise WordmillError(f"{folder}/config.json: {error}") from None
    if layout is not LAYOUTS["wordmill"] and (part := unknown_part(model)):
        raise WordmillError(f"{folder}: a {settings['model_type']} model cannot be read into {part}")
    views = layout.views(model)
    with torch.no_grad():
        for name, view in views.items():
            found = tensors.pop(name, None)
            if found is None:
                found = tensors.pop(name.removeprefix(layout.prefix), None)
            if found is None or found.shape != view.shape:
                raise WordmillError(f"{folder}/{WEIGHTS}: {name} is missing or has another shape")
            if not found.is_floating_point() or found.element_size() == 1:
                raise WordmillError(f"{folder}/{WEIGHTS}: {name} is quantised ({found.dtype}); give a float copy")
            view.copy_(found)
    spare = layout.ignored + ("lm_head.weight",) * model.config.tie_head
    unread = [name for name in tensors if not name.endswith(spare)]
    if unread:
        raise WordmillError(f"{folder}/{WEIGHTS}: {min(unread)} has no place in a {settings['model_type']} model here")
    return model


def fingerprint(model: Transformer) -> str:
    """SHA-256 over all weights: equal exactly when every bit is."""
    whole = hashlib.sha256()
    for name, weight in sorted(LAYOUTS[layout_for(model)].views(model).items()):
        whole.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def _layout(settings: Any) -> Layout:
    if not isinstance(settings, dict) or settings.get("model_type") not in LAYOUTS:
        found = settings.get("model_type") if isinstance(settings, dict) else None
        raise ConfigError("model_type", f"{found!r} is not supported; known are {', '.join(LAYOUTS)}")
    if settings.get("quantization_config"):
        raise ConfigError("quantization_config", "quantised weights are not read; give a bf16 or fp32 copy")
    if not isinstance(settings.get("vocab_size"), int):
        raise ConfigError("vocab_size", "missing")
    return LAYOUTS[settings["model_type"]]


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of one file, or of the files that the index names."""
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).exists():
        names = [WEIGHTS]
    elif index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
        if pickled:
            raise WordmillError(
                f"{folder}: {pickled[0]} is pickled, and opening it could run anything; "
                "save it as safetensors where you trust it (save_pretrained does)"
            )
        names = [WEIGHTS]
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name:
            raise WordmillError(f"{index}: {name!r} is not a file beside it")
        if not (folder / name).exists():
            raise WordmillError(f"{folder}: no model there ({name} is missing)")
        tensors |= load_file(folder / name)
    return tensors
