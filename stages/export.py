"""Stage `export`: a trained model in the forms that other programs read, and what each form costs.

Writes models/export/: `huggingface/` with a model card, `gguf/` for llama.cpp, `int8/`; which of them, export.formats
says. reports/export.json has the bytes of each form and its perplexity on test documents, computed in fp32 from the
weights as they are read back, so that it is the rounding alone that shows.

The card holds no time and no run, since a rebuild must give the same bytes. It names the SHA-256 of the weights; the
run in MLflow has the same in its tag `wordmill.weights`, and the card among its artifacts.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm.compute import Compute, ComputeConfig
from llm.corpus.documents import manifest, sample
from llm.dpo import DPOConfig
from llm.errors import ConfigError, WordmillError
from llm.evaluate import score_documents
from llm.export.config import ExportConfig
from llm.export.formats import FORMS, Source, check_formats, size
from llm.export.origin import UNKNOWN, origin
from llm.model import folder
from llm.model.transformer import Transformer
from llm.pretrain import PretrainConfig
from stages.card import card
from stages.metrics import read_json, write_json
from stages.stage import Stage, main

CORPUS = Path("data/corpus")
OUT = Path("models/export")


@dataclass(frozen=True)
class Params:
    pretrain: PretrainConfig
    dpo: DPOConfig
    export: ExportConfig
    compute: ComputeConfig


def run(params: Params, stage: Stage) -> None:
    config = params.export
    source = Source.load(Path("models") / config.model, f"wordmill-{config.model}")
    compute = Compute(replace(params.compute, precision="fp32"))
    texts = sample(CORPUS / "test", config.documents)

    def perplexity(model: Transformer) -> float:
        scores = score_documents(model.to(compute.device), source.tokenizer, texts, compute)
        return scores.summary(seed=1)["perplexity"]

    exact, bits = perplexity(source.model), folder.fingerprint(source.model)
    source.model.cpu()
    shutil.rmtree(OUT, ignore_errors=True)  # DVC does the same; a stage run by hand must not count what was there
    rounded = folder.load(source.folder)
    try:  # again, since pretrain.start_from may have brought another model than params.yaml describes
        check_formats(config.formats, source.model.config, "")
    except ConfigError as error:
        raise WordmillError(f"params.yaml: export.{error}") from None
    rows: dict[str, dict[str, Any]] = {}
    for name in config.formats:
        form, path = FORMS[name], OUT / FORMS[name].path(source.name)
        form.write(source, path)
        form.read_weights(path, rounded.cpu())
        found = exact if folder.fingerprint(rounded) == bits else perplexity(rounded)
        rows[name] = {"path": path.as_posix(), "bytes": size(path), "perplexity": found, "cost": found / exact - 1}
    weights = hashlib.sha256((source.folder / folder.WEIGHTS).read_bytes()).hexdigest()
    results: dict[str, Any] = {"model": config.model, "documents": len(texts), "perplexity": exact, "formats": rows}
    write_json(results, Path("reports/export.json"))

    evaluated = read_json(Path("reports/evaluate/figures.json"))[config.model]
    corpus = manifest(CORPUS)
    stage.tags({"wordmill.weights": weights})
    version = {
        "model": config.model,
        "weights": weights,
        "bits_per_byte": repr(evaluated["test"]["bits_per_byte"]),
        "test_documents": f"{evaluated['test']['documents']:.0f}",
        "test_text": hashlib.sha256(json.dumps(corpus["splits"]["test"], sort_keys=True).encode()).hexdigest(),
    }
    stage.model(source.folder, config.registered_model, version)
    stage.metrics({f"{name}.{key}": row[key] for name, row in rows.items() for key in ("bytes", "perplexity", "cost")})
    if "huggingface" in rows:
        page = OUT / "huggingface/README.md"
        settings = {"pretrain": asdict(params.pretrain), "dpo": asdict(params.dpo)}
        text = card(config, source, corpus, settings, evaluated, results, weights)
        page.write_text(text, encoding="utf-8")
        stage.artifact(page)
        if origin(params.pretrain.start_from, config).licence == UNKNOWN:
            print(
                f"the model card says licence: unknown, since {params.pretrain.start_from} has no card that names one; "
                "set export.licence",
                flush=True,
            )
    for form_name, row in rows.items():
        line = f"{row['bytes']:,} bytes, perplexity {row['perplexity']:.4f} ({row['cost']:+.3%})"
        print(f"{form_name}: {line}: {row['path']}", flush=True)


if __name__ == "__main__":
    main("export", Params, run)
