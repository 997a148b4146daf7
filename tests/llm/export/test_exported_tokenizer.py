"""An exported folder begins texts as training did, in `tokenizers` and in `transformers`, and is checked when read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from transformers import AutoTokenizer, GenerationConfig, pipeline

from llm.compute import Compute
from llm.corpus.stories.source import tell
from llm.errors import WordmillError
from llm.export import int8
from llm.export.formats import FORMS, Source
from llm.export.tokenizer_files import write_tokenizer_files
from llm.generate import Sampling, generate
from llm.model import folder
from llm.tokenizer import sentencepiece
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.foreign import HuggingFaceBPE
from llm.tokenizer.huggingface import Definition, tokenizer_json
from llm.tokenizer.patterns import CL100K, GPT2
from llm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer

TEXTS = ["Once there was a child", "", " \u00fcber\n\n  x", "<|endoftext|> is text", "1234567 o'CLOCK"]
STORIES = [tell(1, index).text for index in range(40)]


def kinds() -> dict[str, Tokenizer]:
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the"]
    merges = ((116, 104), (256, 101))
    specials = {"<|begin|>": 258, "<|end|>": 259}
    two = Definition(tuple(tokens), merges, CL100K, specials, "<|end|>", "<|begin|>")
    digits = ByteBPE.from_merges(list(merges), GPT2, [END_OF_TEXT]).definition._replace(pattern=r"\d|\D+")
    return {
        "BPE": ByteBPE.from_merges(list(merges), GPT2, [END_OF_TEXT]),
        "bytes": ByteBPE.from_merges([], GPT2, [END_OF_TEXT]),
        "two tokens": ByteBPE(two),
        "the library's": HuggingFaceBPE(json.loads(tokenizer_json(digits)), END_OF_TEXT),
        "SentencePiece unigram": sentencepiece.train(STORIES, "unigram", 320, [END_OF_TEXT]),
        "SentencePiece BPE": sentencepiece.train(STORIES, "bpe", 320, [END_OF_TEXT]),
    }


@pytest.mark.parametrize("kind", kinds())
def test_transformers_puts_the_begin_of_text_token_there(kind: str, tmp_path: Path) -> None:
    ours = kinds()[kind]
    ours.save(tmp_path)
    plain = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_tokenizer_files(ours, tmp_path, 128)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    # To the library's unigram a special token is a piece like others, which text can spell.
    for text in TEXTS if kind != "SentencePiece unigram" else TEXTS[:3]:
        spelled = END_OF_TEXT in text
        ids = theirs(text, split_special_tokens=True)["input_ids"] if spelled else theirs(text)["input_ids"]
        assert ids == [ours.begin_of_text, *ours.encode(text)], text
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.begin_of_text, ours.end_of_text)
    assert theirs.pad_token_id == ours.end_of_text
    assert theirs.model_max_length == 128
    padded = theirs(["Once", "Once there was"], padding=True)
    assert padded["attention_mask"][0][0] == 0  # on the left, where generation wants it
    generation = GenerationConfig.from_pretrained(tmp_path)
    assert (generation.bos_token_id, generation.eos_token_id) == (ours.begin_of_text, ours.end_of_text)
    if (tmp_path / "tokenizer.json").exists():
        library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        assert library.encode("Once").ids == [ours.begin_of_text, *ours.encode("Once")]
        assert library.encode("Once", "twice").ids.count(ours.begin_of_text) == 2
    # Our own reader takes both, and they are the same tokenizer.
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == ours.fingerprint
    assert (again.begin_of_text, again.end_of_text) == (ours.begin_of_text, ours.end_of_text)
    again.save(tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == plain


@pytest.mark.parametrize("layout", ["llama"])
def test_pipeline_writes_what_we_write(
    layout: str, make_source: Callable[[str], Source], tmp_path: Path, compute: Compute
) -> None:
    source = make_source(layout)
    at = tmp_path / FORMS["huggingface"].path(source.name)
    FORMS["huggingface"].write(source, at)
    write = pipeline("text-generation", model=str(at), device="cpu")
    prompts = ["Once there was", "The cat", " and"]
    begin = source.tokenizer.begin_of_text
    encoded = [[begin, *source.tokenizer.encode(prompt)] for prompt in prompts]
    ours = generate(source.model, encoded, 24, Sampling(temperature=0), 1, source.tokenizer.end_of_text, compute)
    found = write(prompts, max_new_tokens=24, do_sample=False, return_tensors=True, batch_size=1)
    for (reply,), prompt, ids in zip(found, encoded, ours, strict=True):
        written = reply["generated_token_ids"]
        assert written[: len(prompt)] == prompt
        assert written[len(prompt) :][: len(ids)] == ids


def test_a_changed_byte_is_found_by_our_readers(make_source: Callable[[str], Source], tmp_path: Path) -> None:
    source = make_source("llama")
    for name, weights in (("huggingface", "model.safetensors"), ("int8", "int8.safetensors")):
        at = tmp_path / name
        FORMS[name].write(source, at)  # type: ignore[index]
        FORMS[name].read_weights(at, source.model)  # type: ignore[index]
        content = (at / weights).read_bytes()
        (at / weights).write_bytes(content[:-40] + bytes(40))
        with pytest.raises(WordmillError, match=f"{weights}: not the bytes that were written"):
            FORMS[name].read_weights(at, source.model)  # type: ignore[index]
    with pytest.raises(WordmillError, match="quantised weights are not read"):
        folder.load(tmp_path / "int8")
    with pytest.raises(WordmillError, match="not an int8 folder"):
        int8.read_weights(tmp_path / "huggingface", source.model)
