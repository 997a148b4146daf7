"""A sweep over toy stages: what is checked first, what runs how often, what the table and MLflow hold."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient

from llm.errors import WordmillError
from pipeline import sweep

REPO = Path(__file__).parents[2]


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def built(checkout: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy pipeline, committed and built; its last stage has a metric: a function of what it reads."""
    code = Path("toy.py").read_text()
    code += "if name == 'samples':\n    Path('samples.json').write_text('{\"size\": %r}' % content['top_k'])\n"
    Path("toy.py").write_text(code)
    with Path("dvc.yaml").open("a") as file:
        file.write("")
    pipeline = Path("dvc.yaml").read_text()
    pipeline = pipeline.replace(
        "outs: [samples.out]", "outs: [samples.out]\n    metrics: [{samples.json: {cache: false}}]"
    )
    Path("dvc.yaml").write_text(pipeline)
    with Path(".gitignore").open("a") as file:
        file.write("/*.out\n/samples.json\n")
    git("add", ".")
    git("commit", "-qm", "one")
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], check=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"sweep-{checkout}")
    return checkout


@pytest.fixture
def defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the default params and nothing else."""
    shutil.copy(REPO / "presets/default.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)


def test_every_point_and_each_stage_once(built: Path, store: str) -> None:
    before = Path("params.yaml").read_bytes()
    grid = sweep.points(["pretrain.lr=[0.006, 0.5]", "samples.top_k=[13, 5]"])
    told: list[str] = []
    outcomes = sweep.sweep(grid, told.append)
    # The default's stages are in the cache; the second learning rate needs `pretrain` once, though `samples` fails.
    assert [outcome.ran for outcome in outcomes] == [["samples"], ["samples"], ["pretrain", "samples"], ["samples"]]
    unlucky = "samples: top_k: 13 is bad luck; use 12"
    assert sweep.table(outcomes) == [
        ("pretrain.lr", "samples.top_k", "samples.size", "ran"),
        ("0.006", "13", "", unlucky),
        ("0.006", "5", "5", "samples"),
        ("0.5", "13", "", unlucky),
        ("0.5", "5", "5", "samples"),
    ]
    assert Path("params.yaml").read_bytes() == before
    assert git("worktree", "list").count("\n") == 1

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(f"sweep-{built}")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["wordmill.kind"]) == ("FAILED", "sweep")
    assert run.data.params == {"pretrain.lr": "[0.006, 0.5]", "samples.top_k": "[13, 5]"}
    assert "| 0.5 | 5 | 5 | samples |" in run.data.tags["mlflow.note.content"]


def test_a_relative_address_is_meant_from_here(built: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    relative = os.path.relpath(store.removeprefix("sqlite:///"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{relative}")
    given: list[Mapping[str, str]] = []

    def run_one(
        point: sweep.Point, folder: Path, environment: Mapping[str, str], tell: Callable[[str], None]
    ) -> sweep.Outcome:
        given.append(environment)
        return sweep.Outcome(point)

    sweep.sweep(sweep.points(["samples.top_k=[5]"]), print, run_one)
    assert given[0]["MLFLOW_EXPERIMENT_NAME"] == f"sweep-{built}"
    assert Path(given[0]["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")).resolve() == Path(
        store.removeprefix("sqlite:///")
    )
    assert given[0]["MLFLOW_TRACKING_URI"].startswith("sqlite:////")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["pretrain.lr=1e-3"], "give a list of values"),
        (["pretrain.lr=[1e-3, fast]"], "pretrain.lr: .*found 'fast'"),
        (["pretrain.lt=[1]"], "pretrain.lt: unknown key"),
        (["pretrain.lr=[1]", "pretrain.lr=[2]"], "given twice"),
        ([f"pretrain.seed={list(range(40))}", f"corpus.seed={list(range(40))}"], "1600 combinations"),
        ([], "give params"),
    ],
)
def test_wrong_grids_are_refused_before_anything_starts(defaults: None, settings: list[str], message: str) -> None:
    with pytest.raises(WordmillError, match=message):
        sweep.points(settings)


def test_the_grid_is_the_product_in_order(defaults: None) -> None:
    grid = sweep.points(["dpo.beta=[0.1, 0.2]", "samples.seed=[1, 2, 3]"])
    assert [tuple(point.values.values()) for point in grid] == [(b, s) for b in (0.1, 0.2) for s in (1, 2, 3)]
    assert all("beta: 0.2" in point.params for point in grid[3:])
    assert json.dumps(grid[0].values) == '{"dpo.beta": 0.1, "samples.seed": 1}'
