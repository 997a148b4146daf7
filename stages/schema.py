"""All sections of params.yaml together, and the checks that span two of them.

A stage checks the sections it reads; this checks a whole file before anything starts (`wordmill check`, `wordmill
use`, the Prefect flow).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm.compute_config import ComputeConfig
from llm.corpus.config import CorpusConfig
from llm.dpo_config import DPOConfig
from llm.errors import ConfigError, WordmillError
from llm.evaluate_config import EvaluateConfig
from llm.export.config import ExportConfig
from llm.export.fits import check_formats
from llm.model.config import ModelConfig
from llm.preferences import PreferencesConfig, resolved
from llm.pretrain_config import PretrainConfig
from llm.samples import SamplesConfig
from llm.shards import ShardsConfig
from llm.tokenizer.config import TokenizerConfig
from stages.params import build, check_sections, shortened


@dataclass(frozen=True)
class Schema:
    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    shards: ShardsConfig
    model: ModelConfig
    pretrain: PretrainConfig
    preferences: PreferencesConfig
    dpo: DPOConfig
    evaluate: EvaluateConfig
    samples: SamplesConfig
    export: ExportConfig
    compute: ComputeConfig


def check(content: Mapping[str, Any], source: str = "params.yaml") -> Schema:
    """The whole document, typed. Raises WordmillError with the path of the first mistake."""
    check_sections(content, source)
    schema = build(Schema, content, source)
    try:
        schema = replace(schema, preferences=resolved(schema.preferences, schema.corpus.source))
    except ConfigError as error:
        raise WordmillError(f"{source}: preferences.{shortened(error)}") from None
    if schema.samples.max_new_tokens >= schema.model.block_size:
        raise WordmillError(
            f"{source}: samples.max_new_tokens: {schema.samples.max_new_tokens} leaves no room for a prompt in "
            f"model.block_size {schema.model.block_size}; lower it"
        )
    if schema.evaluate.stride > schema.model.block_size:
        raise WordmillError(
            f"{source}: evaluate.stride: {schema.evaluate.stride} is longer than model.block_size, "
            f"{schema.model.block_size}; lower it"
        )
    if schema.preferences.source in ("judged", "stories") and schema.corpus.source != "stories":
        raise WordmillError(
            f"{source}: preferences.source: {schema.preferences.source} needs the embedded stories, but corpus.source "
            f"is {schema.corpus.source}; use auto, corpus or files"
        )
    try:
        check_formats(schema.export.formats, schema.model, schema.tokenizer.kind)
    except ConfigError as error:
        raise WordmillError(f"{source}: export.{error}") from None
    return schema
