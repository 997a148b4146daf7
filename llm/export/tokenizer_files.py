"""The tokenizer's files of an exported model: as in the model's folder, and with what other programs need to know.

A model's texts begin with a special token, as every document did in training. The exported files have `tokenizers`,
`transformers` and what is built on them (vLLM, TGI, lm-eval) put it there. They also name a padding token, the length
of the context, and the side on which prompts are padded for generation.
"""

import json
from pathlib import Path
from typing import Any

from llm.strict_json import read_json
from llm.tokenizer.file_schema import LARGEST_FILE, SETTINGS, TOKENIZER
from llm.tokenizer.huggingface import beginning
from llm.tokenizer.tokenizer import Tokenizer

GENERATION = "generation_config.json"


def write_tokenizer_files(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Change the copies in `folder` of the files of `tokenizer`, and add generation_config.json."""
    names = {number: name for name, number in tokenizer.special_tokens.items()}
    begin, end = tokenizer.begin_of_text, tokenizer.end_of_text
    if (folder / TOKENIZER).exists():
        content: dict[str, Any] = read_json(folder / TOKENIZER, largest=LARGEST_FILE)
        content["post_processor"] = beginning(names[begin], begin)
        (folder / TOKENIZER).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    settings: dict[str, Any] = read_json(folder / SETTINGS)
    settings |= {
        "bos_token": names[begin],
        "eos_token": names[end],
        "pad_token": names[end],
        "padding_side": "left",
        "add_bos_token": True,
        "model_max_length": block_size,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    generation = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
    (folder / GENERATION).write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
