"""What a person wants to know after a rebuild: the main figures as a table, what was made where, what to try next."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm.errors import WordmillError

REPORTS = Path("reports")
MODELS = ("base", "dpo")
ROWS = {
    "bits_per_byte": ("bits per byte, test", "{:.4f}"),
    "excess": ("above the lowest possible", "{:.1%}"),
    "preferred": ("prefers the chosen answer", "{:.1%}"),
    "sensible": ("sensible stories", "{:.1%}"),
}
COUNTS = [  # file, key, and how a person says it
    ("corpus.json", "documents", "{:,} documents"),
    ("tokenizer.json", "vocab_size", "{:,} tokens in the vocabulary"),
    ("shards.json", "tokens", "{:,} training tokens"),
    ("pretrain.json", "parameters", "{:,} parameters"),
    ("pretrain.json", "step", "{:,} steps of pretraining"),
    ("preferences.json", "pairs", "{:,} preference pairs"),
    ("dpo.json", "step", "{:,} steps of DPO"),
]
MADE = {
    "models/dpo": "the tuned model, a Hugging Face folder; models/base is the one before",
    "models/export": "the same for other programs: Hugging Face with a card, GGUF, int8",
    "reports/report.html": "curves, tables and samples on one page",
    "reports/samples.md": "what both models write",
}
NEXT = {
    'wordmill generate "Once there was"': "let the model write",
    "wordmill serve": "try both models in a browser",
    "wordmill set pretrain.steps=2500 && dvc repro": "change something and rebuild what it touches",
}


def metrics(reports: Path = REPORTS) -> Iterator[str]:
    """The figures of both models side by side, then the sizes. Raises WordmillError before the first rebuild."""
    models = {name: _read(reports / "evaluate" / f"{name}.json") for name in MODELS}
    sizes = [text.format(value) for file, key, text in COUNTS if (value := _read(reports / file).get(key)) is not None]
    if not sizes and not any(models.values()):
        raise WordmillError("reports/: there are no figures yet; `make repro` or `dvc repro` makes them")
    if any(models.values()):
        yield f"{'':28}{'base':>10}{'after DPO':>12}"
    for key, (title, form) in ROWS.items():
        values = [models[name].get(key) for name in MODELS]
        if any(value is not None for value in values):
            base, dpo = ("-" if value is None else form.format(value) for value in values)
            yield f"{title:28}{base:>10}{dpo:>12}"
    if any(models.values()) and sizes:
        yield ""
    yield from sizes


def summary(since: float | None) -> Iterator[str]:
    """The last lines of a rebuild that began at `since`, in seconds since 1970, if that is known."""
    yield ""
    yield from metrics()
    yield ""
    if since is not None:
        yield f"Done in {duration(time.time() - since)}. What was made:"
    else:
        yield "What was made:"
    yield from _listed({path: text for path, text in MADE.items() if Path(path).exists()})
    yield "What to try next (first `source .venv/bin/activate`):"
    yield from _listed(NEXT)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _listed(lines: dict[str, str]) -> Iterator[str]:
    width = max(map(len, lines), default=0)
    return (f"  {name:{width}}  {text}" for name, text in lines.items())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WordmillError(f"{path}: cannot be read ({error}); `dvc checkout` brings it back") from None
    return content if isinstance(content, dict) else {}
