"""Which models each export format can take. Free of torch, so that a check of params.yaml is fast."""

from collections.abc import Callable, Iterable

from llm.errors import ConfigError
from llm.export.config import Format
from llm.model.config import ModelConfig
from llm.model.layouts import layout_of

IN_LLAMA_CPP = ("llama", "qwen3", "gpt2")  # layouts that llama.cpp has an architecture for, under the same names


def gguf_architecture(config: ModelConfig) -> str | None:
    """llama.cpp's name for such a model; None where it has none."""
    name = layout_of(config)
    return name if name in IN_LLAMA_CPP and (name != "gpt2" or config.feed_forward == "gelu") else None


def check_formats(formats: Iterable[Format], config: ModelConfig, tokenizer: str) -> None:
    """Raises ConfigError for the first format that a model, with this kind of tokenizer, cannot be exported in.

    An empty `tokenizer` means that its kind is not known.
    """
    for name in formats:
        CHECKS[name](config, tokenizer)


def parts(config: ModelConfig) -> str:
    """The names of a model's parts, for error messages."""
    width = [f"head_dim {config.head_dim}"] if config.head_dim else []
    switches = [name for name in ("qk_norm", "bias") if getattr(config, name)]
    return ", ".join([config.position, config.norm, config.feed_forward, *switches, *width])


def _in_transformers(config: ModelConfig, tokenizer: str) -> None:
    if layout_of(config) == "wordmill":
        raise ConfigError("formats", f"huggingface: `transformers` has no class for {parts(config)}; leave it out")


def _in_llama_cpp(config: ModelConfig, tokenizer: str) -> None:
    if gguf_architecture(config) is None:
        raise ConfigError(
            "formats",
            f"gguf: llama.cpp has no architecture for {parts(config)}, only Llama's parts, Qwen3's, and GPT-2's with "
            "gelu; leave the gguf formats out",
        )
    if tokenizer in ("sentencepiece", "bytes"):
        raise ConfigError(
            "formats",
            f"gguf: of tokenizers only byte-level BPE is exported, not {tokenizer}; leave the gguf formats out",
        )


def _always(config: ModelConfig, tokenizer: str) -> None:
    pass


CHECKS: dict[Format, Callable[[ModelConfig, str], None]] = {
    "huggingface": _in_transformers,
    "gguf-f32": _in_llama_cpp,
    "gguf-f16": _in_llama_cpp,
    "gguf-q8_0": _in_llama_cpp,
    "int8": _always,
}
