"""Which forms a model is exported in."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from llm.errors import ConfigError

Format = Literal["huggingface", "gguf-f32", "gguf-f16", "gguf-q8_0", "int8"]


@dataclass(frozen=True)
class ExportConfig:
    """Raises ConfigError."""

    model: Literal["base", "dpo"]
    formats: tuple[Format, ...]
    documents: int  # test documents for the perplexity of each format, evenly spaced; 0 = all
    licence: str  # of the model, as its card names it; auto: see `llm.export.origin`
    registered_model: str  # MLflow's name for it
    base_model: str = ""  # name of the model that pretrain.start_from is, as owner/name; empty: what its folder says

    def __post_init__(self) -> None:
        for form in self.formats:
            if self.formats.count(form) > 1:
                raise ConfigError("formats", f"{form!r} is there twice; known are {', '.join(get_args(Format))}")
        if self.documents < 0:
            raise ConfigError("documents", f"{self.documents} is negative; 0 means all")
        for name in ("licence", "registered_model"):
            if not getattr(self, name).strip():
                raise ConfigError(name, "is empty; give a name")
        for name in ("licence", "base_model"):
            if not getattr(self, name).isprintable():
                raise ConfigError(name, "holds a line end or a control character; give a name")
        if not re.fullmatch(r"[\w.+@()-][\w .+@()-]{0,199}(?<! )", self.registered_model):
            raise ConfigError(
                "registered_model",
                f"{self.registered_model!r} is no name for MLflow's registry; use letters, digits and . _ - + @ ( )",
            )
