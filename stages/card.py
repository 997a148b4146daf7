"""The model card: what Hugging Face shows of a folder, README.md in its format, from what the stages have recorded."""

from dataclasses import asdict
from typing import Any

from llm.export.config import ExportConfig
from llm.export.formats import Source
from stages.pages import environment


def card(
    export: ExportConfig,
    source: Source,
    manifest: dict[str, Any],
    settings: dict[str, Any],
    evaluated: dict[str, Any],
    results: dict[str, Any],
    weights: str,
) -> str:
    """The text. `evaluated` are the model's figures of the stage `evaluate`, `results` those of `export`."""
    splits = {f"{name}_documents": split["documents"] for name, split in manifest["splits"].items()}
    named = ("source", "revision", "licence", "documents", "bytes", "digest")
    also = {}
    if "preferences" in evaluated:
        also["prefers the chosen answer"] = f"{evaluated['preferences']['accuracy']:.1%}"
    if "stories" in evaluated:
        also["sensible stories"] = f"{evaluated['stories']['sensible']:.1%}"
    names = {number: name for name, number in source.tokenizer.special_tokens.items()}
    return (
        environment()
        .get_template("card.md")
        .render(
            export=asdict(export),
            parameters=sum(weight.numel() for weight in source.model.parameters()),
            model=source.model.config,
            end_of_text=names[source.tokenizer.end_of_text],
            data={name: manifest[name] for name in named if manifest[name] is not None} | splits,
            settings=settings,
            pretrain=settings["pretrain"],
            test=evaluated["test"],
            also=also,
            results=results,
            weights=weights,
        )
    )
