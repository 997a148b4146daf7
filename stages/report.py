"""Stage `report`: one self-contained page, reports/report.html, and the pictures for `dvc plots` in reports/plots/.

The page says how good the models are and what limits them, shows the curves and the samples, and describes corpus,
tokenizer and shards. It holds no time, speed or host (those are in MLflow), so a rebuild gives the same bytes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.charts import Figures, draw, drawable, read_curve
from stages.metrics import read_json
from stages.pages import environment
from stages.stage import Stage, main

REPORTS = Path("reports")
SOURCES = {
    "corpus": Path("data/corpus/manifest.json"),
    "tokenizer": REPORTS / "tokenizer.json",
    "shards": REPORTS / "shards/splits.json",
    "pretrain": REPORTS / "pretrain.json",
    "preferences": REPORTS / "preferences/counts.json",
    "dpo": REPORTS / "dpo.json",
    "evaluate": REPORTS / "evaluate/figures.json",
    "samples": REPORTS / "samples.json",
    "export": REPORTS / "export.json",
}


@dataclass(frozen=True)
class Params:
    """The report reads no params."""


def run(params: Params, stage: Stage) -> None:
    metrics = {name: read_json(path) for name, path in SOURCES.items()}
    metrics["corpus"] = corpus(metrics["corpus"])
    figures = Figures(
        read_curve(REPORTS / "pretrain" / "curve.csv"),
        read_curve(REPORTS / "dpo" / "curve.csv"),
        metrics["evaluate"],
        metrics["shards"]["tokens"].pop("by_length"),  # drawn, not listed
    )
    plots = REPORTS / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name in drawable(figures):
        png, pictures[name] = draw(name, figures)
        (plots / f"{name}.png").write_bytes(png)
        stage.artifact(plots / f"{name}.png", "plots")
    del metrics["evaluate"]["series"]  # drawn, not listed
    page = REPORTS / "report.html"
    page.write_text(render(metrics, pictures), encoding="utf-8")
    stage.artifact(page)
    print(f"{page}: open it in a browser", flush=True)


def render(metrics: dict[str, Any], pictures: dict[str, str]) -> str:
    """The page, from the metrics by file name and the pictures (SVG elements) by chart name."""
    return environment().get_template("report.html").render(**metrics, pictures=pictures)


def corpus(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the page says of the corpus: its manifest less the settings and the files."""
    names = ("source", "revision", "licence", "documents", "bytes", "characters", "duplicates", "empty", "invalid_utf8")
    known = {name: manifest[name] for name in names if manifest[name] is not None}
    return {**known, **{f"{split}_documents": entry["documents"] for split, entry in manifest["splits"].items()}}


if __name__ == "__main__":
    main("report", Params, run)
