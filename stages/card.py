"""The model card: what Hugging Face shows of a folder, README.md in its format, from what the stages have recorded."""

from dataclasses import asdict
from typing import Any

from llm.export.config import ExportConfig
from llm.export.formats import Source
from llm.export.origin import Origin, origin
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
    began = origin(settings["pretrain"].get("start_from", ""), export)
    names = {number: name for name, number in source.tokenizer.special_tokens.items()}
    return (
        environment()
        .get_template("card.md")
        .render(
            export=asdict(export),
            origin=began,
            beginning=beginning(settings["pretrain"], began),
            parameters=sum(weight.numel() for weight in source.model.parameters()),
            model=source.model.config,
            begin_of_text=names[source.tokenizer.begin_of_text],
            end_of_text=names[source.tokenizer.end_of_text],
            data={name: manifest[name] for name in named if manifest[name] is not None} | splits,
            settings=settings,
            test=evaluated["test"],
            also=also,
            results=results,
            weights=weights,
        )
    )


def beginning(pretrain: dict[str, Any], began: Origin) -> str:
    """Sentences on what the model began with, and what it was trained on."""
    steps = pretrain["steps"]
    if pretrain.get("start_from"):
        trained = "was trained further on the corpus described below" if steps else "was not trained further"
        return f"It began with the weights of {began.base_model} and {trained}."
    if pretrain.get("continue_from"):
        return "It went on from a checkpoint of an earlier run, on the corpus described below."
    return "It began with random weights and was trained on the corpus described below."
