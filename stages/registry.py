"""MLflow's model registry: every exported model a version, and the best of them under the alias `champion`.

A version is a pyfunc model from code (`stages/mlflow_model.py`), with signature and input example, among the artifacts
of the run that exported it. The same weights are registered once, however often a rebuild makes them.

The rule of promotion is `is_better`: an exported model becomes the champion if there is none, or if it was evaluated on
the very test text of the present champion and has fewer bits per byte there. Figures on other text say nothing about
which is better, so a model of another text never takes the place by itself.
"""

import importlib.metadata
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.store import every

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CODE = Path(__file__).with_name("mlflow_model.py")
LIBRARY = Path(__file__).parents[1] / "llm"
PACKAGES = ("mlflow", "numpy", "pydantic", "regex", "safetensors", "sentencepiece", "tiktoken", "tokenizers", "torch")
EXAMPLE = "Once there was"
DEFAULTS = {
    "max_new_tokens": 64,
    "temperature": 0.7,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "stop": [""],  # texts to stop at; the empty one, which MLflow needs to know the type by, is none
    "seed": 1,
}
CHAMPION = "champion"
SAME = ("test_text", "test_documents")  # tags that two models must share to be compared


def register(client: "MlflowClient", run_id: str, folder: Path, name: str, tags: Mapping[str, str]) -> None:
    """Make the model in `folder` a version of the registered model `name`, and renew its champion.

    `tags` are the version's: among them `weights` and `test_text`, which are digests, `test_documents`, the number of
    documents of it that were evaluated, and `bits_per_byte`.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description="Models that Wordmill's stage `export` wrote.")
    versions = every(lambda token: client.search_model_versions(f"name = '{name}'", page_token=token))
    version = next((found for found in versions if found.tags.get("weights") == tags["weights"]), None)
    if version is None:
        with tempfile.TemporaryDirectory() as made:
            _save(folder, Path(made) / "model")
            client.log_artifacts(run_id, str(Path(made) / "model"), "model")
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        text = f"{float(tags['bits_per_byte']):.4f} bits per byte on the test text; run {run_id}"
        version = client.create_model_version(name, source, run_id, tags=dict(tags), description=text)
    client.set_tag(run_id, "wordmill.model_version", f"{name}/{version.version}")
    champion = _champion(client, name)
    if champion and champion.version == version.version:
        better, why = False, "it is the champion already"
    else:
        better, why = is_better(tags, champion.tags if champion else None)
    if better:
        client.set_registered_model_alias(name, CHAMPION, version.version)
    client.set_tag(run_id, "wordmill.promotion", f"{'promoted' if better else 'not promoted'}: {why}")


def is_better(candidate: Mapping[str, str], champion: Mapping[str, str] | None) -> tuple[bool, str]:
    """Whether a model becomes the champion, by the tags of both versions, and why."""
    if champion is None:
        return True, "there was no champion"
    if any(name in champion and champion[name] != candidate.get(name) for name in SAME) or SAME[0] not in champion:
        return False, "the champion was evaluated on other text"
    ours, theirs = float(candidate["bits_per_byte"]), float(champion["bits_per_byte"])
    return ours < theirs, f"{ours:.4f} bits per byte on the test text, the champion has {theirs:.4f}"


def _champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    return client.get_model_version(name, version) if version else None


def _released(package: str) -> str:
    """The version without what a build adds, as in 2.13.0+cpu: an index knows releases only."""
    return importlib.metadata.version(package).partition("+")[0]


def _save(folder: Path, path: Path) -> None:
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import infer_signature

    for noisy in ("mlflow.pyfunc", "mlflow.utils.requirements_utils", "mlflow.models.model"):
        logging.getLogger(noisy).setLevel(logging.ERROR)  # it would have type hints, which cannot name a column
    example = pd.DataFrame({"prompt": [EXAMPLE]})
    mlflow.pyfunc.save_model(
        str(path),
        python_model=str(CODE),
        artifacts={"model": str(folder)},
        code_paths=[str(LIBRARY)],
        signature=infer_signature(example, pd.DataFrame({"text": [""]}), DEFAULTS),
        input_example=(example, DEFAULTS),
        pip_requirements=[f"{package}=={_released(package)}" for package in PACKAGES],
    )
