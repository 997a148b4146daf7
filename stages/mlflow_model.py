"""The exported model as MLflow serves it: prompts in, continuations out.

A script, in MLflow's terms a model from code: MLflow keeps it with the model and runs it on loading, so nothing is
pickled. Beside it lie the model folder and a copy of `llm`, which is all that it imports.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from llm.compute import Compute, ComputeConfig
from llm.errors import WordmillError
from llm.generate import generate, stop_place
from llm.model import folder
from llm.sampling import Sampling
from llm.tokenizer.tokenizer import Tokenizer


class WordmillModel(PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        path = Path(context.artifacts["model"])
        self._tokenizer = Tokenizer.load(path)
        self._model = folder.load(path)
        self._compute = Compute(ComputeConfig(device="auto", precision="auto", tf32=False, compile=False, threads=2))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A column `text` for a column `prompt`. `params` as the signature names them; it fills in what is missing."""
        given = params or {}
        end, size = self._tokenizer.end_of_text, self._tokenizer.vocab_size
        prompts = [[self._tokenizer.begin_of_text, *self._tokenizer.encode(text)] for text in model_input["prompt"]]
        try:
            sampling = Sampling(**{setting.name: given[setting.name] for setting in fields(Sampling)})
            limit = given["max_new_tokens"]
            written = generate(
                self._model, prompts, limit, sampling, given["seed"], end, self._compute, vocab_size=size
            )
        except WordmillError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        stops = [text for text in given["stop"] if text]
        texts = map(self._tokenizer.decode, written)
        return pd.DataFrame({"text": [text[: stop_place(text, stops)] for text in texts]})


set_model(WordmillModel())
