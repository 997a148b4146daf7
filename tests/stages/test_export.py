"""The model card says what the stages found, in the form that Hugging Face reads."""

from dataclasses import replace
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


def test_the_card_says_what_the_model_began_with(tiny_config: ModelConfig, tmp_path: Path) -> None:
    tokenizer = ByteBPE.from_merges([], GPT2, ["<|endoftext|>"])
    exported = Source(Path(), Transformer(tiny_config, tokenizer.vocab_size), tokenizer, "wordmill-dpo")
    evaluated = {**MODEL, "test": {**MODEL["test"], "documents": 11.0}}
    auto = replace(CONFIG, licence="auto")

    def read(config: ExportConfig, **pretrain: object) -> ModelCard:
        settings = {"pretrain": {"steps": 3, "start_from": "", "continue_from": "", **pretrain}, "dpo": {"beta": 0.125}}
        return ModelCard(card(config, exported, MANIFEST, settings, evaluated, EXPORT, "f00d"))

    own = read(auto)
    assert (own.data.license, own.data.base_model) == ("mit", None)
    assert "began with random weights" in own.text
    assert "earlier run" in read(auto, continue_from="runs/x").text

    hub = tmp_path / "models--owner--small-1.5B/snapshots/abc"
    hub.mkdir(parents=True)
    (hub / "README.md").write_text("---\nlicense: other\nlicense_name: 'strange: one'\n---\n# A model\n")
    given = read(auto, start_from=str(hub))
    assert (given.data.license, given.data.base_model) == ("strange: one", "owner/small-1.5B")
    assert "began with the weights of owner/small-1.5B and was trained further" in given.text
    assert "from nothing" not in given.text
    assert "was not trained further" in read(auto, start_from=str(hub), steps=0).text
    assert read(CONFIG, start_from=str(hub)).data.license == "cc-by-4.0"
    named = read(replace(auto, base_model="other/name"), start_from=str(hub))
    assert named.data.base_model == "other/name"

    plain = tmp_path / "mine"
    plain.mkdir()
    unknown = read(auto, start_from=str(plain))
    assert (unknown.data.license, unknown.data.base_model) == ("unknown", None)
    assert "the weights of mine" in unknown.text
    for head in ("", "---\nlicense: [\n---\n", "---\nlicense: 5\n---\n", "---\n- a\n---\n", "\xff"):
        (plain / "README.md").write_text(head, encoding="latin-1")
        assert read(auto, start_from=str(plain)).data.license == "unknown"
