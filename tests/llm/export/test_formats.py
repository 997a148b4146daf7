"""Every form read back by others' code and by ours: `transformers`, and llama.cpp where it is installed."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llm.compute import Compute
from llm.errors import ConfigError, WordmillError
from llm.export import int8
from llm.export.config import ExportConfig, Format
from llm.export.formats import FORMS, Source, check_formats, size
from llm.generate import Sampling, generate
from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer

from .conftest import CHANGES

NASTY = (
    "Once there was a child, fond of beetles.\n\n\nIt's 1234567 o'CLOCK; \"don't\" they'LL SAY",
    " \u00fcber na\u00efve caf\u00e9s\u2026",
    "  leading, trailing  \t\n \n x\r\n\r\n",
    "\U0001f600\u4f60\u597d\u3000\u00a0 e\u0301 \u0661\u0662\u0663",
    "<|endoftext|> is text here!!!\n",
)


def written(source: Source, name: Format, at: Path) -> Path:
    path = at / FORMS[name].path(source.name)
    FORMS[name].write(source, path)
    return path


def read_back(source: Source, name: Format, at: Path) -> Transformer:
    """The model as the form has kept it."""
    model = copy.deepcopy(source.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    FORMS[name].read_weights(written(source, name, at), model)
    return model


def test_every_form_has_its_line() -> None:
    assert set(FORMS) == set(get_args(Format))


@pytest.mark.parametrize("layout", CHANGES)
def test_forms_keep_what_they_say(layout: str, make_source: Callable[[str], Source], tmp_path: Path) -> None:
    source = make_source(layout)
    exact = dict(source.model.named_parameters())
    for name in FORMS:
        for key, weight in read_back(source, name, tmp_path).named_parameters():
            given = exact[key].detach()
            kept = weight.detach()
            positions = key == "position.weight" and name != "int8"
            if name in ("huggingface", "gguf-f32") or given.ndim == 1 or positions:
                assert torch.equal(kept, given), (name, key)
            elif name == "gguf-f16":
                assert torch.equal(kept, given.half().float()), key
            else:  # half a step of the largest scale there can be; q8_0 rounds it to fp16, 2^-11 of up to 127 steps
                steps = 0.5 + (127 / 2**11 if name == "gguf-q8_0" else 1e-4)
                bound = given.abs().max() / 127 * steps
                assert 0 < (kept - given).abs().max() <= bound, (name, key)


@pytest.mark.parametrize("layout", ["llama", "qwen3", "gpt2"])  # it forgets biases of Llama's; llama.cpp does not
def test_transformers_computes_the_same_from_the_gguf(
    layout: str, make_source: Callable[[str], Source], tmp_path: Path
) -> None:
    source = make_source(layout)
    path = written(source, "gguf-f32", tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=AutoConfig.from_pretrained(source.folder)
    )
    ids = torch.randint(0, 456, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, source.model(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_equal_models_are_equal_files(layout: str, make_source: Callable[[str], Source], tmp_path: Path) -> None:
    source = make_source(layout)
    for name in FORMS:
        first, second = (written(source, name, tmp_path / at) for at in ("a", "b"))
        files = [Path()] if first.is_file() else [path.relative_to(first) for path in first.iterdir()]
        assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files), name


def test_q8_0_is_a_quarter_and_what_32_does_not_divide_is_fp16(
    make_source: Callable[[str], Source], tmp_path: Path
) -> None:
    source = make_source("llama")
    whole, small = (size(written(source, name, tmp_path)) for name in ("gguf-f32", "gguf-q8_0"))
    assert small < whole / 2.5  # the vocabulary is not quantised
    narrow = replace(source.model.config, d_ff=40)
    odd = replace(source, model=Transformer(narrow, 458))
    odd.model.initialise(1)
    kinds = {t.name: t.tensor_type for t in GGUFReader(written(odd, "gguf-q8_0", tmp_path / "odd")).tensors}
    assert kinds["blk.0.ffn_down.weight"] == GGMLQuantizationType.F16
    assert kinds["blk.0.ffn_up.weight"] == GGMLQuantizationType.Q8_0


def test_int8_of_a_row_is_symmetric_and_takes_zeros() -> None:
    matrix = torch.tensor([[127.0, -63.6, 0.0], [0.0, 0.0, 0.0], [-2.0, 1.0, 0.5]])
    integers, scales = int8.quantised(matrix)
    assert integers.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 64, 32]]
    assert torch.equal(integers[0] * scales[0], torch.tensor([127.0, -64.0, 0.0]))


def test_an_int8_folder_is_not_taken_for_another(make_source: Callable[[str], Source], tmp_path: Path) -> None:
    source = make_source("llama")
    path = written(source, "int8", tmp_path)
    with pytest.raises(WordmillError, match="quantised weights are not read"):
        folder.load(path)
    with pytest.raises(OSError, match="no file named model"):
        AutoModelForCausalLM.from_pretrained(path)
    with pytest.raises(WordmillError, match="not an int8 folder"):
        int8.read_weights(source.folder, source.model)


@pytest.mark.parametrize(
    ("change", "tokenizer", "name", "said"),
    [
        ({"norm": "layernorm"}, "bpe", "huggingface", "no class for rope, layernorm, swiglu"),
        ({"norm": "layernorm"}, "bpe", "gguf-f16", "no architecture for rope, layernorm, swiglu"),
        ({**CHANGES["gpt2"], "feed_forward": "relu"}, "bpe", "gguf-q8_0", "no architecture for learned"),
        ({}, "sentencepiece", "gguf-f32", "byte-level BPE"),
        ({}, "bytes", "gguf-f32", "byte-level BPE"),
    ],
)
def test_what_a_form_cannot_hold_is_refused(
    tiny_config: ModelConfig, change: dict[str, Any], tokenizer: str, name: Format, said: str
) -> None:
    check_formats(["int8"], replace(tiny_config, **change), tokenizer)
    with pytest.raises(ConfigError, match=said):
        check_formats([name], replace(tiny_config, **change), tokenizer)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"formats": ("int8", "int8")}, "there twice"),
        ({"documents": -1}, "negative"),
        ({"licence": " "}, "is empty"),
        ({"registered_model": "a/b"}, "no name for MLflow"),
    ],
)
def test_wrong_settings(change: dict[str, Any], said: str) -> None:
    right: dict[str, Any] = {"model": "dpo", "formats": ("int8",), "documents": 1, "licence": "mit"}
    with pytest.raises(ConfigError, match=said):
        ExportConfig(**{**right, "registered_model": "w", **change})


@pytest.mark.parametrize("layout", CHANGES)
def test_llama_cpp_writes_the_same(
    layout: str, make_source: Callable[[str], Source], tmp_path: Path, compute: Compute
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install -e '.[llama]'")
    source = make_source(layout)
    tokenizer, end = source.tokenizer, source.tokenizer.end_of_text
    prompt = [end, *tokenizer.encode("Once there was a child")]
    ours = generate(source.model, [prompt], 64, Sampling(temperature=0), 1, -1, compute)[0]  # the end does not stop it
    perplexities = {}
    for name in ("gguf-f32", "gguf-q8_0"):
        path = str(written(source, name, tmp_path))
        exact = {"type_k": 0, "type_v": 0}  # keys and values in fp32, as ours
        theirs = llama_cpp.Llama(path, n_ctx=128, n_threads=1, logits_all=True, verbose=False, **exact)
        for text in NASTY:
            assert theirs.tokenize(text.encode(), special=False) == [end, *tokenizer.encode(text)], text
            assert theirs.detokenize(tokenizer.encode(text)) == text.encode()
        if name == "gguf-f32":
            found = []
            for token in theirs.generate(theirs.tokenize(b"Once there was a child"), temp=0, repeat_penalty=1.0):
                found.append(token)
                if len(found) == 64:
                    break
            assert found == ours
        ids = [end, *ours]
        theirs.reset()
        theirs.eval(ids)
        logprobs = torch.from_numpy(np.array(theirs.scores[: len(ids)])).log_softmax(-1)
        perplexities[name] = float((-logprobs[torch.arange(64), torch.tensor(ours)].mean()).exp())
        theirs.close()
    assert perplexities["gguf-q8_0"] == pytest.approx(perplexities["gguf-f32"], rel=0.01)


@pytest.mark.parametrize("layout", ["llama", "qwen3", "gpt2"])
def test_transformers_writes_the_same(
    layout: str, make_source: Callable[[str], Source], tmp_path: Path, compute: Compute
) -> None:
    source = make_source(layout)
    theirs = AutoModelForCausalLM.from_pretrained(written(source, "huggingface", tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "huggingface")
    given = tokenizer(tokenizer.bos_token + "Once there was", return_tensors="pt", add_special_tokens=False)
    found = theirs.generate(**given, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0)[0]
    prompt = [source.tokenizer.end_of_text, *source.tokenizer.encode("Once there was")]
    assert found.tolist()[: len(prompt)] == prompt
    ours = generate(source.model, [prompt], 64, Sampling(temperature=0), 1, -1, compute)[0]
    assert found.tolist()[len(prompt) :] == ours
