"""The model card says what the stages found, in the form that Hugging Face reads."""

from pathlib import Path

from huggingface_hub import ModelCard

from llm.export.config import ExportConfig
from llm.export.formats import Source
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.patterns import GPT2
from stages.card import card
from stages.pages import figure, rows

from .test_report import EXPORT, MANIFEST, MODEL

CONFIG = ExportConfig("dpo", ("gguf-q8_0",), 7, "cc-by-4.0", "wordmill")


def test_the_card(tiny_config: ModelConfig) -> None:
    tokenizer = ByteBPE.from_merges([], GPT2, ["<|endoftext|>"])
    exported = Source(Path(), Transformer(tiny_config, tokenizer.vocab_size), tokenizer, "wordmill-dpo")
    settings = {"pretrain": {"steps": 3, "lr": 0.006}, "dpo": {"beta": 0.125}}
    evaluated = {**MODEL, "test": {**MODEL["test"], "documents": 11.0}}
    text = card(CONFIG, exported, MANIFEST, settings, evaluated, EXPORT, "f00d")
    read = ModelCard(text)
    assert read.data.license == "cc-by-4.0"
    assert read.data.library_name == "transformers"
    parameters = sum(weight.numel() for weight in exported.model.parameters())
    for shown in (
        f"{parameters:,} parameters",
        "11 test documents",
        "0.9000 (0.8000 – 1.0000)",
        "| sensible stories | 25.0% |",
        "| gguf-q8_0 | 1,357,824 | 4.4900 | +0.223 % |",
        "| pretrain.lr | 0.006 |",
        "| dpo.beta | 0.125 |",
        "    f00d\n",
    ):
        assert shown in read.text, shown
    assert card(CONFIG, exported, MANIFEST, settings, evaluated, EXPORT, "f00d") == text
    assert all(figure(value) in text for _, value in rows(settings))
    for source, licence in (("stories", "that of Wordmill"), ("files", "not recorded")):
        unknown = {**MANIFEST, "source": source, "licence": None}
        assert f"the corpus's licence is {licence}" in card(
            CONFIG, exported, unknown, settings, evaluated, EXPORT, "f00d"
        )
