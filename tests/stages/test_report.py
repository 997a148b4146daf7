"""The report and its pictures: the same bytes twice, whole without any address, and right for any corpus."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from llm.sampling import Sampling
from stages import pages, report
from stages.charts import CHARTS, Figures, draw, read_curve
from stages.records import write_curve
from stages.samples import described

from llm.training_state import Record  # isort: skip

SPLIT = {"loss": 1.5, "perplexity": 4.48, "bits_per_byte": 0.9, "bits_per_byte_low": 0.8, "bits_per_byte_high": 1.0}
MODEL: dict[str, Any] = {
    "train": SPLIT,
    "val": SPLIT,
    "test": SPLIT,
    "gap": {"bits_per_byte": 0.0123, "bits_per_byte_low": -0.01, "bits_per_byte_high": 0.03},
    "calibration": {"expected_calibration_error": 0.0345, "overconfidence": 0.02},
    "preferences": {
        **{"accuracy": 0.6, "accuracy_low": 0.5, "accuracy_high": 0.7},
        **{"accuracy_per_token": 0.612, "accuracy_per_token_low": 0.513, "accuracy_per_token_high": 0.714},
        **{"margin": 0.1, "margin_low": -0.25, "margin_high": 0.35, "pairs": 20.0},
    },
    "minimal_pairs": {"pairs": 77.0, "accuracy": 0.51, "accuracy_low": 0.4, "accuracy_high": 0.62},
    "paradigms": {"wh_<i>sland</i>": {"pairs": 76.0, "accuracy": 0.52, "accuracy_low": 0.41, "accuracy_high": 0.63}},
    "stories": {
        "sensible": 0.25,
        "sensible_low": 0.2,
        "sensible_high": 0.3,
        "written": 40.0,
        "faults": {"holder": 0.5, "<b>wish</b>": 0.25},
    },
    "excess_over_entropy": 0.5,
}
EXPORT = {
    "model": "dpo",
    "documents": 7,
    "perplexity": 4.48,
    "formats": {
        "gguf-q8_0": {"path": "models/export/gguf/m.gguf", "bytes": 1_357_824, "perplexity": 4.49, "cost": 0.00223}
    },
}
FLOOR = {"bits_per_byte": 0.6, "bits_per_byte_low": 0.59, "bits_per_byte_high": 0.61}
NAMES = ("bits_per_byte", "perplexity", "accuracy", "accuracy_per_token", "margin")
CHANGE = {f"{name}{end}": value for name in NAMES for end, value in (("", 0.0678), ("_low", -0.05), ("_high", 0.09))}
SERIES = {
    "calibration": [
        {"from": low / 3, "to": (low + 1) / 3, "tokens": 40.0, "confidence": 0.3, "accuracy": 0.2} for low in range(3)
    ],
    "loss_by_position": [
        {
            "from": 2.0**n,
            "to": 2.0**n * 2 - 1,
            "tokens": 9.0,
            "loss": 3.0 - n,
            "loss_low": 2.9 - n,
            "loss_high": 3.1 - n,
        }
        for n in range(3)
    ],
}
OVERLAP = {
    "8_words": {
        "documents": 5.0,
        "ngrams": 4321.0,
        "documents_hit": 0.8,
        "documents_mostly": 0.2,
        "ngrams_hit": 0.5678,
    },
    "99_words": {"documents": 0.0, "ngrams": 0.0},
}
EVALUATE = {
    **{"base": MODEL, "dpo": MODEL, "source": {"train": FLOOR, "val": FLOOR, "test": FLOOR}},
    **{"change": CHANGE, "contamination": {"val": OVERLAP, "test": OVERLAP}, "series": {"base": SERIES, "dpo": SERIES}},
}
LENGTHS = {"vocabulary": [256, 9, 4] + [1] * 20, "text": [5, 70, 30] + [0] * 20}
NASTY = "<script>alert(1)</script> *stars* {{ braces }} & «ünï»\n\nsecond part"


FOR_SOME = ("stories", "excess_over_entropy", "minimal_pairs", "paradigms")  # figures that not every run has


def without_stories() -> dict[str, Any]:
    plain = copy.deepcopy(EVALUATE)
    del plain["source"]
    for name in ("base", "dpo"):
        plain[name] = {key: plain[name][key] for key in plain[name] if key not in FOR_SOME}
    return plain


def figures(evaluate: dict[str, Any], folder: Path) -> Figures:
    """Curves of a short training, through the file that the stages write."""
    pretrain, dpo = [], []
    for step in range(1, 9):
        names = ("loss", "lr", "grad_norm", "param_norm", "update_ratio", "logit_entropy")
        values = dict.fromkeys(names, 3.0 / step)
        pretrain.append(Record(step, {**values, "tokens": 100.0 * step, "flops": 1e6 * step}))
        dpo.append(Record(step, dict.fromkeys(("reward_chosen", "reward_rejected", "accuracy"), 0.1 * step)))
        if step % 4 == 0:
            pretrain.append(Record(step, {"val_loss": 2.5 / step, "val_bits_per_byte": 1.5 / step}))
            held_out = ("reward_chosen", "reward_rejected", "accuracy")
            dpo.append(Record(step, {f"held_out_{name}": 0.1 * step for name in held_out}))
    write_curve(pretrain, folder / "pretrain.csv")
    write_curve(dpo, folder / "dpo.csv")
    return Figures(read_curve(folder / "pretrain.csv"), read_curve(folder / "dpo.csv"), evaluate, LENGTHS)


def test_a_curve_survives_its_file(tmp_path: Path) -> None:
    curve = figures(EVALUATE, tmp_path).pretrain
    assert list(curve)[:2] == ["step", "loss"]
    assert np.array_equal(curve["loss"], 3.0 / np.arange(1, 9))  # to the last bit
    assert np.isnan(curve["val_loss"][:3]).all()
    assert curve["val_loss"][3] == 2.5 / 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, str]]:
    drawn = figures(EVALUATE, tmp_path_factory.mktemp("curves"))
    return {name: draw(name, drawn) for name in CHARTS}


@pytest.mark.parametrize("name", CHARTS)
def test_pictures_are_the_same_bytes_twice_and_whole(
    name: str, pictures: dict[str, tuple[bytes, str]], tmp_path: Path
) -> None:
    png, svg = pictures[name]
    assert draw(name, figures(EVALUATE, tmp_path)) == (png, svg)
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20]) <= 1300  # pixels wide: the header's first figure
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.search(r"\d{4}-\d\d-\d\d", svg)  # no date
    # Names and ids must not collide on one page, or a picture takes the clip paths of another.
    ids = set(re.findall(r' id="([^"]+)"', svg))
    assert len(ids) == len(re.findall(r' id="', svg))


def test_charts_of_a_corpus_without_known_entropy(tmp_path: Path) -> None:
    drawn = figures(without_stories(), tmp_path)
    assert "entropy, " not in draw("bits_per_byte", drawn)[1]
    assert "sensible stories" not in draw("before_and_after", drawn)[1]
    assert "the chosen answer" in draw("before_and_after", drawn)[1]


MANIFEST: dict[str, Any] = {
    **dict.fromkeys(("bytes", "characters", "duplicates", "empty", "invalid_utf8"), 0),
    **{"source": "stories", "revision": None, "licence": "none known", "documents": 400, "digest": "ab"},
    "splits": {"train": {"documents": 399, "parts": [{"sha256": "cd"}]}},
}


class Page(HTMLParser):
    """What a browser would do with a page: tags opened and closed, text shown, addresses asked for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.shown = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in ("meta", "br", "img", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += data


def metrics(evaluate: dict[str, Any]) -> dict[str, Any]:
    return {
        "corpus": report.corpus(MANIFEST),
        "tokenizer": {"vocab_size": 600, "longest_tokens": [" something", "</table>"]},
        "shards": {"train": {"tokens": 12_345_678}, "tokens": {"rarest_tokens": [" axle"], "by_length": LENGTHS}},
        "pretrain": {"parameters": 28_512, "tokens": 20_480.0, "loss": 0.00012345},
        "preferences": {"train": 50, "kinds": {"wish": 3}},
        "dpo": {"train_pairs": 50, "loss": 0.69},
        "evaluate": {key: evaluate[key] for key in evaluate if key != "series"},
        "samples": {
            "settings": described(Sampling(0.8, min_p=0.1)),
            "samples": [{"prompt": NASTY, "base": NASTY, "dpo": NASTY}],
        },
        "export": EXPORT,
    }


@pytest.mark.parametrize("evaluate", [EVALUATE, without_stories()], ids=["stories", "other corpus"])
def test_the_page(evaluate: dict[str, Any], pictures: dict[str, tuple[bytes, str]], tmp_path: Path) -> None:
    drawn = {name: svg for name, (_, svg) in pictures.items()}
    drawn["before_and_after"] = draw("before_and_after", figures(evaluate, tmp_path))[1]
    text = report.render(metrics(evaluate), drawn)
    assert report.render(metrics(evaluate), drawn) == text
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"url\((?!#|&quot;#|'#)", text)
    assert page.shown.count(NASTY) == 4  # prompt and continuation on both sides, as they are
    for shown in (
        "none known",
        "train_documents",
        "12,345,678",
        "0.000123",
        "28,512",
        "1,357,824",
        "+0.223 %",
        "+0.0123 -0.0100 – +0.0300",
        "3.45 %",
        "4,321",
        "56.78 %",
        "0.10 -0.25 – 0.35",
        "+6.8 % of perplexity (-5.0 to +9.0)",
        "+6.8 points of preference accuracy (-5.0 to +9.0)",
        "61.2 % 51.3 – 71.4",
        "+6.8 by the mean token (-5.0 to +9.0)",
        " something, </table>",
        " axle",
        "Temperature 0.8, top-k off, top-p off, min-p 0.1. The prompt is bold.",
    ):
        assert shown in page.shown
    assert ("sensible stories" in page.shown) == ("source" in evaluate)
    assert ("wh_<i>sland</i>" in page.shown) == ("52.0 % 41.0 – 63.0" in page.shown) == ("source" in evaluate)
    assert ("<b>wish</b>" in page.shown) == ("source" in evaluate)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1234567, "1,234,567"), (20480.0, "20,480"), (0.5, "0.5"), (3.14159, "3.142"), (12345.678, "1.235e+04"),
     (0.000123456, "0.000123"), (-2.5, "-2.5"), (True, "True"), ("text", "text")],
)  # fmt: skip
def test_numbers_for_people(value: Any, shown: str) -> None:
    assert pages.figure(value) == shown


def test_the_stage_writes_page_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = figures(EVALUATE, tmp_path)
    for name in ("pretrain", "dpo"):
        Path("reports", name).mkdir(parents=True)
        (tmp_path / f"{name}.csv").rename(Path("reports", name, "curve.csv"))
    for name, content in (metrics(EVALUATE) | {"corpus": MANIFEST, "evaluate": EVALUATE}).items():
        report.SOURCES[name].parent.mkdir(parents=True, exist_ok=True)
        report.SOURCES[name].write_text(json.dumps(content))

    class Kept:
        def artifact(self, path: Path, folder: str = "") -> None:
            assert path.exists()

    report.run(report.Params(), Kept())  # type: ignore[arg-type]
    assert {path.stem for path in Path("reports/plots").iterdir()} == set(CHARTS)
    assert Path("reports/plots/dpo.png").read_bytes() == draw("dpo", drawn)[0]
    assert Path("reports/report.html").read_text().count("<svg") == len(CHARTS)
