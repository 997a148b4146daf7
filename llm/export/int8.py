"""Weight-only int8: each row of a matrix as integers from -127 to 127 under one fp32 scale, a quarter of the bytes.

A row's largest weight becomes ±127 (symmetric, round to nearest even), so no weight is off by more than half a step of
its row (LLM.int8(), Dettmers et al. 2022, arXiv:2208.07339, for the weights). Products are computed in floating point
from the weights that this gives back. Norms and biases stay fp32; the embedding is a matrix like the others.

On disk it is a model folder with `int8.safetensors`, which holds, for each matrix, `<name>` (int8) and `<name>.scale`.
There is no `model.safetensors`, so `transformers`, which would take integers for weights, refuses the folder.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.errors import WordmillError
from llm.model.folder import WEIGHTS
from llm.model.layouts import LAYOUTS
from llm.model.transformer import Transformer

METHOD = "wordmill-int8"
INTEGERS = "int8.safetensors"


def quantised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (rows, columns) as int8 and the scales of its rows (rows, 1) in fp32."""
    scales = matrix.abs().amax(dim=1, keepdim=True).float() / 127
    scales[scales == 0] = 1  # a row of zeros
    return (matrix / scales).round().to(torch.int8), scales


def save(folder: Path, target: Path) -> None:
    """Write the model in `folder` to `target`, its matrices as int8; its tokenizer's files are copied."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.name not in (WEIGHTS, "config.json"):
            shutil.copyfile(path, target / path.name)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["quantization_config"] = {"quant_method": METHOD}
    (target / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {}
    for name, weight in load_file(folder / WEIGHTS).items():
        tensors[name] = weight
        if weight.ndim == 2:
            tensors[name], tensors[f"{name}.scale"] = quantised(weight)
    save_file(tensors, target / INTEGERS, metadata={"format": "pt"})
    (target / INTEGERS).chmod((target / "config.json").stat().st_mode)  # safetensors lets only its writer read it


def read_weights(folder: Path, model: Transformer) -> None:
    """Give `model` the weights of a folder that `save` made of one of its shape. Raises WordmillError for others."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if settings.get("quantization_config") != {"quant_method": METHOD}:
        raise WordmillError(f"{folder}: not an int8 folder of ours; the stage `export` makes one")
    tensors = load_file(folder / INTEGERS)
    with torch.no_grad():
        for name, view in LAYOUTS[settings["model_type"]].views(model).items():
            weight = tensors[name]
            view.copy_(weight * tensors[f"{name}.scale"] if weight.dtype == torch.int8 else weight)
