"""Stage `samples`: the same prompts continued by base and DPO model.

Writes reports/samples.md for reading and reports/samples.json for the report.
"""

import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llm.compute import Compute, ComputeConfig
from llm.corpus.documents import documents
from llm.errors import WordmillError
from llm.generate import Sampling, generate
from llm.model import folder
from llm.samples import SamplesConfig, opening
from llm.tokenizer.tokenizer import Tokenizer
from stages.metrics import write_json
from stages.stage import Stage, main

LINE_END = re.compile(r"\r\n|\r|\n")


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
    encoded = [[tokenizer.begin_of_text, *tokenizer.encode(prompt)] for prompt in prompts]
    written = {}
    for name in ("base", "dpo"):
        model = folder.load(Path("models") / name)
        check_fit(encoded, bool(config.prompts), model.config.block_size)
        end, size = tokenizer.end_of_text, tokenizer.vocab_size
        limit, sampling = config.max_new_tokens, config.sampling
        ids = generate(model, encoded, limit, sampling, config.seed, end, compute, vocab_size=size)
        written[name] = [config.cut(tokenizer.decode(row)) for row in ids]
    samples = [
        {"prompt": prompt, "base": base, "dpo": dpo}
        for prompt, base, dpo in zip(prompts, written["base"], written["dpo"], strict=True)
    ]
    settings = described(config.sampling)
    write_json({"settings": settings, "samples": samples}, Path("reports/samples.json"))
    page = Path("reports/samples.md")
    page.write_text(markdown(samples, settings), encoding="utf-8")
    stage.artifact(page)
    print(f"{page}: {len(samples)} prompts, continued by both models; the first by the tuned one:", flush=True)
    print(excerpt(samples[0]["prompt"] + samples[0]["dpo"]), flush=True)


def excerpt(text: str, characters: int = 300) -> str:
    """The beginning of a text on one line, without what a terminal would obey."""
    line = "".join(character if character.isprintable() else " " for character in " ".join(text.split()))
    return line if len(line) <= characters else f"{line[:characters]}…"


def check_fit(prompts: list[list[int]], own: bool, block_size: int) -> None:
    """Raises WordmillError if a prompt, its end-of-text token included, leaves no room in the context."""
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt) >= block_size:
            where = f"samples.prompts: prompt {number}" if own else f"samples.opening_characters: opening {number}"
            raise WordmillError(
                f"{where} has {len(prompt) - 1} tokens, and model.block_size {block_size} leaves room for "
                f"{block_size - 2} and one to follow; shorten it"
            )


def described(sampling: Sampling) -> str:
    """The settings for people: those that everybody knows, and of the others what is not as usual."""
    settings = f"Temperature {sampling.temperature}, top-k {sampling.top_k or 'off'}"
    settings += f", top-p {sampling.top_p if sampling.top_p < 1 else 'off'}"
    plain = Sampling()
    for name in ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        if (value := getattr(sampling, name)) != getattr(plain, name):
            settings += f", {name.replace('_', '-' if name == 'min_p' else ' ')} {value}"
    return settings


def markdown(samples: list[dict[str, str]], settings: str) -> str:
    """A page with a section a prompt; the prompt is bold, what a model wrote follows it."""
    parts = ["# Samples\n", f"{settings}. The prompt is bold; each model wrote the rest.\n"]
    for number, sample in enumerate(samples, start=1):
        parts.append(f"## {number}\n")
        for name, title in (("base", "Base model"), ("dpo", "After DPO")):
            parts.append(f"### {title}\n\n{quoted(sample['prompt'], sample[name])}\n")
    return "\n".join(parts)


def quoted(prompt: str, text: str) -> str:
    """A Markdown quotation that keeps line ends; the prompt's lines are bold."""
    # Not **…**, which is no longer bold where a comma stands before it and a letter behind it.
    lines = [f"<b>{escaped(line)}</b>" if line.strip() else "" for line in LINE_END.split(prompt)]
    first, *rest = LINE_END.split(text)
    lines[-1] += escaped(first, begins=not lines[-1])
    lines += [escaped(line) for line in rest]
    return "\n".join(f"> {line}  " if line.strip() else ">" for line in lines)


def escaped(line: str, begins: bool = True) -> str:
    """`line` with what Markdown gives a meaning to made plain; `begins` where it stands at the beginning of one."""
    text = re.sub(r"([\\`*_\[\]<>&~|])", r"\\\1", line)
    if not begins:
        return text
    indent = len(text) - len(text := text.lstrip(" \t"))
    text = re.sub(r"^([#+=-])", r"\\\1", text)
    text = re.sub(r"^([0-9]+)([.)])", r"\1\\\2", text)
    return "&nbsp;" * indent + text


if __name__ == "__main__":
    main("samples", Params, run)
