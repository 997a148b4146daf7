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
from safetensors.torch import save_file
from torch import Tensor

from llm.errors import WordmillError
from llm.model.hf_configs import REMEDY, read_config
from llm.model.layouts import LAYOUTS, READ_AS
from llm.model.transformer import Transformer
from llm.model.weight_files import FLOATS, WEIGHTS, tensors_of, verify_sums, write_sums
from llm.tokenizer.tokenizer import files

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
    for name in files(folder):
        shutil.copyfile(folder / name, target / name)
    settings = read_config(folder)
    settings["quantization_config"] = {"quant_method": METHOD}
    (target / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {}
    for name, stored in tensors_of(folder / WEIGHTS).items():
        tensors[name] = weight = stored.read()
        if weight.ndim == 2:
            tensors[name], tensors[f"{name}.scale"] = quantised(weight)
    save_file(tensors, target / INTEGERS, metadata={"format": "pt"})
    write_sums(target, [INTEGERS])
    (target / INTEGERS).chmod((target / "config.json").stat().st_mode)  # safetensors lets only its writer read it


def read_weights(folder: Path, model: Transformer) -> None:
    """Give `model` the weights of a folder that `save` made of one of its shape. Raises WordmillError for others."""
    settings = read_config(folder)
    if settings.get("quantization_config") != {"quant_method": METHOD}:
        raise WordmillError(f"{folder}: not an int8 folder of ours; the stage `export` makes one")
    verify_sums(folder)
    tensors = tensors_of(folder / INTEGERS)
    with torch.no_grad():
        for name, view in LAYOUTS[READ_AS[settings["model_type"]]].views(model).items():
            stored, scale = tensors.get(name), tensors.get(f"{name}.scale")
            if stored is None or stored.shape != tuple(view.shape):
                raise WordmillError(f"{folder / INTEGERS}: {name} is missing or has another shape; {REMEDY}")
            quantised = stored.dtype == "I8"
            if quantised != (scale is not None) or (not quantised and stored.dtype not in FLOATS):
                raise WordmillError(f"{folder / INTEGERS}: {name} is neither of floats nor of integers and scales")
            weight = stored.read()
            if scale is not None:
                if scale.shape != (view.shape[0], 1) or scale.dtype not in FLOATS:
                    raise WordmillError(f"{folder / INTEGERS}: {name}.scale has another shape; {REMEDY}")
                weight = weight * scale.read()
            view.copy_(weight)
