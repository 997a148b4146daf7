"""MLflow's model registry: every exported model a version, and the best of them under the alias `champion`.

A version is a pyfunc model from code (`stages/mlflow_model.py`), with signature and input example, among the artifacts
of the run that exported it. The same weights are registered once, however often a rebuild makes them. `champion` is the
version with the fewest bits per byte among those that were evaluated on the same test text as the model that was
exported last: figures on other text say nothing about which is better.
"""

import importlib.metadata
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

CODE = Path(__file__).with_name("mlflow_model.py")
LIBRARY = Path(__file__).parents[1] / "llm"
PACKAGES = ("mlflow", "numpy", "regex", "safetensors", "sentencepiece", "tiktoken", "tokenizers", "torch")
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


def register(client: "MlflowClient", run_id: str, folder: Path, name: str, tags: Mapping[str, str]) -> None:
    """Make the model in `folder` a version of the registered model `name`, and renew its champion.

    `tags` are the version's: among them `weights` and `test_text`, which are digests, and `bits_per_byte`.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description="Models that Wordmill's stage `export` wrote.")
    versions = list(client.search_model_versions(f"name = '{name}'"))
    version = next((found for found in versions if found.tags.get("weights") == tags["weights"]), None)
    if version is None:
        with tempfile.TemporaryDirectory() as made:
            _save(folder, Path(made) / "model")
            client.log_artifacts(run_id, str(Path(made) / "model"), "model")
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        text = f"{float(tags['bits_per_byte']):.4f} bits per byte on the test text; run {run_id}"
        version = client.create_model_version(name, source, run_id, tags=dict(tags), description=text)
        versions = [version, *versions]
    client.set_tag(run_id, "wordmill.model_version", f"{name}/{version.version}")
    rivals = [found for found in versions if found.tags.get("test_text") == tags["test_text"]]
    best = min(rivals, key=lambda found: (float(found.tags["bits_per_byte"]), int(found.version)))
    client.set_registered_model_alias(name, CHAMPION, best.version)


def _released(package: str) -> str:
    """The version without what a build adds, as in 2.13.0+cpu: an index knows releases only."""
    return importlib.metadata.version(package).partition("+")[0]


def _save(folder: Path, path: Path) -> None:
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import infer_signature

    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
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
