"""Stage `samples`: the same prompts continued by base and DPO model.

Writes reports/samples.md for reading and reports/samples.json for the report.
"""

from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from llm.compute import Compute, ComputeConfig
from llm.corpus.documents import documents
from llm.generate import Sampling, generate
from llm.model import folder
from llm.samples import SamplesConfig, opening
from llm.tokenizer.tokenizer import Tokenizer
from stages.metrics import write_json
from stages.stage import Stage, main


@dataclass(frozen=True)
class Params:
    samples: SamplesConfig
    compute: ComputeConfig


def run(params: Params, stage: Stage) -> None:
    config = params.samples
    compute = Compute(params.compute)
    tokenizer = Tokenizer.load(Path("models/base"))
    prompts = list(config.prompts) or [
        opening(text, config.opening_characters) for text in islice(documents(Path("data/corpus/test")), config.count)
    ]
    encoded = [[tokenizer.end_of_text, *tokenizer.encode(prompt)] for prompt in prompts]
    sampling = Sampling(config.temperature, config.top_k, config.top_p)
    written = {}
    for name in ("base", "dpo"):
        model = folder.load(Path("models") / name)
        end = tokenizer.end_of_text
        ids = generate(model, encoded, config.max_new_tokens, sampling, config.seed, end, compute)
        written[name] = [tokenizer.decode(row) for row in ids]
    samples = [
        {"prompt": prompt, "base": base, "dpo": dpo}
        for prompt, base, dpo in zip(prompts, written["base"], written["dpo"], strict=True)
    ]
    write_json({"sampling": asdict(sampling), "samples": samples}, Path("reports/samples.json"))
    page = Path("reports/samples.md")
    page.write_text(markdown(samples, sampling), encoding="utf-8")
    stage.artifact(page)
    print(page.read_text(encoding="utf-8"))


def markdown(samples: list[dict[str, str]], sampling: Sampling) -> str:
    """A page with a section a prompt; the prompt is bold, what a model wrote follows it."""
    parts = [
        "# Samples\n",
        f"Temperature {sampling.temperature}, top-k {sampling.top_k or 'off'}, "
        f"top-p {sampling.top_p if sampling.top_p < 1 else 'off'}. The prompt is bold; each model wrote the rest.\n",
    ]
    for number, sample in enumerate(samples, start=1):
        parts.append(f"## {number}\n")
        for name, title in (("base", "Base model"), ("dpo", "After DPO")):
            parts.append(f"### {title}\n\n{quoted(sample['prompt'], sample[name])}\n")
    return "\n".join(parts)


def quoted(prompt: str, text: str) -> str:
    """A Markdown quotation that keeps line ends; the prompt's lines are bold."""
    lines = [f"**{escaped(line)}**" if line.strip() else "" for line in prompt.split("\n")]
    first, *rest = text.split("\n")
    lines[-1] += escaped(first)
    lines += [escaped(line) for line in rest]
    return "\n".join(f"> {line}  " if line else ">" for line in lines)


def escaped(text: str) -> str:
    """`text` with the characters that Markdown gives a meaning to made plain."""
    for character in "\\`*_[]<>#|":
        text = text.replace(character, "\\" + character)
    return text


if __name__ == "__main__":
    main("samples", Params, run)
