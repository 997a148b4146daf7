"""What a model began with, for its card: random weights, or the weights of another model and its licence."""

import re
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llm.errors import WordmillError
from llm.export.config import ExportConfig
from llm.strict_json import read_json

OWN_LICENCE = "mit"  # of a model that is made from nothing
AUTO = "auto"
UNKNOWN = "unknown"  # Hugging Face's name for it
CARD_BYTES = 1_000_000
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)  # a model's name on Hugging Face's hub
CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)", re.ASCII)  # its folder in the hub's cache


@dataclass(frozen=True)
class Origin:
    base_model: str  # its name; empty for random weights
    licence: str  # of the exported model

    @property
    def repository(self) -> str:
        """The name of the base model if it is one on Hugging Face's hub, else empty."""
        return self.base_model if REPOSITORY.fullmatch(self.base_model) else ""


def origin(start_from: str, export: ExportConfig) -> Origin:
    """What the model began with. The licence is `UNKNOWN` where the start model's card is not there or names none."""
    if not start_from:
        return Origin(export.base_model, OWN_LICENCE if export.licence == AUTO else export.licence)
    folder = Path(start_from)
    licence = _licence(folder / "README.md") if export.licence == AUTO else export.licence
    return Origin(export.base_model or _name(folder), licence)


def _licence(card: Path) -> str:
    """The licence that the head of a model's card names."""
    try:
        with card.open(encoding="utf-8") as file:
            _, _, rest = file.read(CARD_BYTES).partition("---\n")
        head = YAML(typ="safe", pure=True).load(rest.partition("\n---")[0])
    except (OSError, UnicodeDecodeError, YAMLError, ValueError, RecursionError):
        return UNKNOWN
    found = head.get("license") if isinstance(head, dict) else None
    if isinstance(head, dict) and found == "other" and isinstance(head.get("license_name"), str):
        found = head["license_name"]
    return found.strip() if isinstance(found, str) and found.strip() and found.isprintable() else UNKNOWN


def _name(folder: Path) -> str:
    """The hub's name of the model in a folder, as far as the folder tells, else the folder's own name."""
    for part in folder.absolute().parts:
        if cached := CACHED.fullmatch(part):
            return f"{cached[1]}/{cached[2]}"
    try:
        settings = read_json(folder / "config.json")
    except (WordmillError, FileNotFoundError):
        settings = {}
    named = settings.get("_name_or_path") if isinstance(settings, dict) else None
    return named if isinstance(named, str) and REPOSITORY.fullmatch(named) else folder.resolve().name
