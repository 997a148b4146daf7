"""Tokens a CPU second of `wordmill serve`: `python -m benchmarks.serve --help`.

Servers of several checkouts answer the same clients in turns, so that a ratio holds on a busy machine. Each client
sends one request after the other and takes the answer whole or as a stream. The CPU seconds are those of the server's
process, all threads counted. The last lines are the compiled decoder alone, in this process and on one thread.
"""

import concurrent.futures
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import psutil
import typer

from benchmarks.shapes import llama
from llm.compiled_decoder import CompiledDecoder
from llm.compute import Compute, ComputeConfig
from llm.generate import Writing
from llm.model import folder
from llm.model.transformer import Transformer
from llm.sampling import Sampling, Uniforms
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.patterns import GPT2

VOCABULARY = 4096


def main(
    checkouts: Annotated[
        list[Path] | None, typer.Argument(help="Folders with a checkout; the first is the base.")
    ] = None,
    clients: str = "1,16",
    tokens: Annotated[int, typer.Option(help="New tokens of a request.")] = 200,
    requests: Annotated[int, typer.Option(help="Of each client in a round.")] = 2,
    rounds: int = 3,
    precision: str = "fp32",
) -> None:
    """Measures all checkouts in turns."""
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        model = make_model(Path(made))
        servers = [stack.enter_context(started(path, model, precision)) for path in checkouts or [Path()]]
        for count in map(int, clients.split(",")):
            for stream in (False, True):
                speeds: list[list[float]] = [[] for _ in servers]
                for number in range(rounds + 1):
                    for place, (address, process) in enumerate(servers):
                        speed = measure(address, process, count, requests if number else 1, tokens, stream)
                        if number:  # the first one warms up
                            speeds[place].append(speed)
                found = [statistics.median(each) for each in speeds]
                ratios = ", ".join(f"{speed:.0f} ({speed / found[0]:.1f} times)" for speed in found)
                typer.echo(f"{count} clients, {'streams' if stream else 'whole'}: {ratios} tokens a CPU second")
        for batch in map(int, clients.split(",")):
            typer.echo(f"the decoder alone, batch {batch}: {alone(model, precision, batch, tokens):.0f}")


def make_model(at: Path) -> Path:
    """4M parameters, and a tokenizer whose merges are as they come."""
    pairs = [(first, second) for first in range(256) for second in range(256)]
    tokenizer = ByteBPE.from_merges(pairs[: VOCABULARY - 257], GPT2, ["<|endoftext|>"])
    tokenizer.save(at / "tokenizer")
    model = Transformer(llama(6, 8, 4, 256, 704, 512), VOCABULARY)
    model.initialise(1)
    folder.save(model, at / "model", at / "tokenizer", tokenizer.end_of_text)
    return at / "model"


@contextmanager
def started(checkout: Path, model: Path, precision: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server of that checkout's code, on one thread."""
    arguments = ["-m", "pipeline.cli", "serve", str(model), "--port", "0", "--threads", "1", "--precision", precision]
    program = subprocess.Popen([sys.executable, *arguments], cwd=checkout, stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout
        address = re.search(r"http://127\.0\.0\.1:\d+", program.stdout.readline())
        assert address
        yield address[0], psutil.Process(program.pid)
    finally:
        program.terminate()
        program.wait()


def measure(address: str, process: psutil.Process, clients: int, requests: int, tokens: int, stream: bool) -> float:
    """Tokens a CPU second."""

    def ask(client: int) -> int:
        count = 0
        for number in range(requests):
            body = {"model": "model", "prompt": "Once there was", "max_tokens": tokens, "seed": 100 * client + number}
            body |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request) as answer:
                content = answer.read().decode()
            count += int(re.findall(r'"completion_tokens": ?(\d+)', content)[-1])
        return count

    before = process.cpu_times()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        count = sum(pool.map(ask, range(clients)))
    time.sleep(0.2)
    after = process.cpu_times()
    return count / (after.user + after.system - before.user - before.system)


def alone(model: Path, precision: str, batch: int, tokens: int) -> float:
    compute = Compute(ComputeConfig("cpu", precision, False, False, 1))  # type: ignore[arg-type]
    decoder = CompiledDecoder(folder.load(model), compute)
    speeds = []
    for _ in range(4):
        start = time.process_time()
        prompts, seeds = [[VOCABULARY - 1, *b"Once there was"]] * batch, [Uniforms(number) for number in range(batch)]
        writing = Writing(decoder, prompts, seeds, tokens, Sampling(), VOCABULARY - 1, "stop")
        while writing.going:
            writing.step()
        speeds.append(sum(map(len, writing.written)) / (time.process_time() - start))
    return statistics.median(speeds[1:])


if __name__ == "__main__":
    typer.run(main)
