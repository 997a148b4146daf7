"""Every preset runs through all stages with the try-out that docs/presets.md gives for it, on a small text.

The lines are read out of the page, so that what it says is what was tried. Only the corpus is another: stories of our
own on disk, in the place of a hub's data set, of books and of Shakespeare. The stages run in this process, one after
the other in the order of DVC's graph; what surrounds them (locks, MLflow) has tests of its own. One preset's charts are
drawn.
"""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.corpus.stories.source import tell
from llm.model import folder as model_folder
from llm.model.counts import parameters
from llm.tokenizer.encodings import ADDRESS, ENCODINGS, cache_file
from llm.tokenizer.tokenizer import Tokenizer
from pipeline import presets
from stages import params, schema

REPO = Path(__file__).parents[1]
PAGE = (REPO / "docs/presets.md").read_text(encoding="utf-8")
NAMES = sorted(path.stem for path in (REPO / "presets").glob("*.yaml") if path.stem != "default")
# `wordmill use NAME …`, the line going on behind a backslash.
COMMAND = re.compile(r"^    wordmill use ((?:.*\\\n)*.*)$", re.MULTILINE)
# Vocabularies that are not trained, or trained to what is asked for: enough to count a model's parameters.
VOCABULARIES = {"tiktoken": 50_257, "bytes": 257}


def commands(name: str) -> list[dict[str, Any]]:
    """The changes of each command that the preset's section gives."""
    section = PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]
    found = []
    for arguments in COMMAND.findall(section):
        words = shlex.split(arguments.replace("\\\n", " "))
        assert words[0] == name
        assert set(words[1::2]) == {"--set"}
        found.append(presets.parsed(words[2::2]))
    return found


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stories in two forms: JSON lines of four stories a document, and all of them as one text."""
    folder = tmp_path_factory.mktemp("texts")
    documents = [" ".join(tell(1, 4 * n + i).text.replace("\n\n", " ") for i in range(4)) for n in range(80)]
    (folder / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    (folder / "text.txt").write_text("\n\n".join(documents))
    return folder


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("presets").symlink_to(REPO / "presets")
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_runs_through_all_stages(
    name: str,
    repo: Path,
    texts: Path,
    run_stages: Callable[..., None],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = commands(name)[-1]
    plain = schema.check(params_of(presets.from_preset(name, {})))
    many = plain.corpus.source == "hub" or len(plain.corpus.urls) > 1
    changes |= {"corpus.source": "files", "corpus.paths": [str(texts / ("documents.jsonl" if many else "text.txt"))]}
    if plain.tokenizer.kind == "tiktoken":
        offer_encoding(plain.tokenizer.encoding, request.getfixturevalue("shared_data"), repo, monkeypatch)
    changes |= {"export.documents": 1, "export.formats": ["huggingface"]}  # the forms have tests of their own
    changes |= {"compute.device": "cpu", "compute.threads": 2}
    if name != NAMES[0]:  # drawing takes half as long as all the rest; the report's tests draw every chart
        monkeypatch.setattr("stages.report.draw", lambda chart, figures: (b"", "<svg></svg>"))
    Path("params.yaml").write_text(presets.from_preset(name, changes))

    run_stages()
    chosen = schema.check(params.document(Path("params.yaml")))
    vocab_size = Tokenizer.load(Path("models/dpo")).vocab_size
    for model in ("base", "dpo"):
        saved = model_folder.load(Path("models") / model)
        assert saved.vocab_size == vocab_size
        assert sum(weight.numel() for weight in saved.parameters()) == sum(
            parameters(chosen.model, vocab_size).values()
        )
    assert "report.html" in {path.name for path in Path("reports").iterdir()}
    evaluated = json.loads(Path("reports/evaluate/figures.json").read_text())
    assert 0 < evaluated["dpo"]["test"]["bits_per_byte"] < 12
    assert 0 < len(json.loads(Path("reports/samples.json").read_text())["samples"]) <= chosen.samples.count
    pretrained = json.loads(Path("reports/pretrain.json").read_text())
    assert pretrained["step"] == chosen.pretrain.steps
    assert 0 <= pretrained["repeated_share"] < 1


def offer_encoding(encoding: str, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the encoding's files where tiktoken would have left them."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder / "tiktoken"))
    (folder / "tiktoken").mkdir()
    for path in ENCODINGS[encoding].files:
        shutil.copy(data / encoding / Path(path).name, cache_file(ADDRESS + path))


def params_of(text: str) -> dict[str, Any]:
    path = Path("checked.yaml")
    path.write_text(text)
    return params.document(path)


def size(text: str) -> int:
    """The parameters of the model that a params.yaml describes."""
    chosen = schema.check(params_of(text))
    vocab_size = VOCABULARIES.get(chosen.tokenizer.kind, chosen.tokenizer.vocab_size)
    return sum(parameters(chosen.model, vocab_size).values())


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_has_the_size_that_the_page_says(name: str, repo: Path) -> None:
    (row,) = re.findall(rf"^\| \[`{re.escape(name)}`\].*\|$", PAGE, re.MULTILINE)
    assert f"{size(presets.from_preset(name, {})):,}" == row.split("|")[2].strip()


def test_published_sizes(repo: Path) -> None:
    """SmolLM2-135M's, and by the page's command GPT-2 small's."""
    assert size(presets.from_preset("smollm2-135m", {})) == 134_515_008
    assert size(presets.from_preset("smollm2-135m", {"model.block_size": 1024})) == 134_515_008
    (gpt2,) = [changes for changes in commands("smallgpt") if changes.get("model.d_model") == 768]
    assert size(presets.from_preset("smallgpt", gpt2)) == 124_439_808


ORIGINALS = ("smolgpt", "smollm2-135m", "smallgpt", "gpt2-nano", "nanolm")
ROW = re.compile(rf"^\| ({'|'.join(ORIGINALS)}) \| ([a-z_0-9.]+) \| ([^|]+) \| ([^|]+) \|([^|]*)\|$", re.MULTILINE)


def alike(stated: str, held: object) -> bool:
    """Whether the page's words are a setting's value."""
    try:
        return float(stated.replace(",", "")) == held
    except ValueError:
        return stated == (str(held).lower() if isinstance(held, bool) else held)


def test_what_the_originals_state_is_held_or_the_page_says_why_not(repo: Path) -> None:
    rows = ROW.findall(PAGE)
    assert len({row[:2] for row in rows}) == len(rows) > 50
    for name in ORIGINALS:
        text = presets.from_preset(name, {})
        held = params_of(text)
        own = [row[1:] for row in rows if row[0] == name]
        assert len(own) >= 5, name
        for setting, stated, preset, why in own:
            section, _, key = setting.partition(".")
            value = size(text) if setting == "parameters" else held[section][key]
            assert alike(preset, value), f"{name} {setting}: the page says {preset}, the preset {value}"
            assert bool(why.strip()) != alike(stated, value), f"{name} {setting}: the original {stated}, ours {value}"


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        ("nanolm", {"pretrain.warmup_steps": 200, "pretrain.steps": 20_000, "preferences.pairs": 500}),
        (
            "smallgpt",
            {
                **{"pretrain.lr": 3e-4, "pretrain.batch_size": 32, "pretrain.micro_batch_size": 8},
                **{"pretrain.weight_decay": 0.1, "pretrain.beta1": 0.9, "pretrain.beta2": 0.95, "samples.top_k": 50},
            },
        ),
    ],
)
def test_figures_that_presets_once_missed(name: str, stated: dict[str, float], repo: Path) -> None:
    held = params_of(presets.from_preset(name, {}))
    found = {setting: held[setting.partition(".")[0]][setting.partition(".")[2]] for setting in stated}
    assert found == stated
