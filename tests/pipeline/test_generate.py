"""`wordmill generate` as its user calls it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from numba import njit

from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.streaming import Piece, write
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.patterns import GPT2
from pipeline import cli
from pipeline.warm_up import saying_so

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes, untrained: its text is full of half characters."""
    at = tmp_path_factory.mktemp("generate")
    ByteBPE.from_merges([], GPT2, ["<|endoftext|>"]).save(at / "tokenizer")
    made = Transformer(
        ModelConfig(
            n_layer=1, n_head=2, n_kv_head=1, d_model=32, d_ff=48, block_size=64, attention="fused", position="rope",
            rope_theta=10_000.0, norm="rmsnorm", norm_eps=1e-5, qk_norm=False, feed_forward="swiglu", bias=False,
            dropout=0.0, tie_head=False,
        ),
        257,
    )  # fmt: skip
    made.initialise(0)
    folder.save(made, at / "model", at / "tokenizer", 256)
    return at / "model"


@pytest.fixture
def call(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def called(
        *arguments: str, standard_input: str | bytes | None = "", terminal: bool = False
    ) -> tuple[int, str, str]:
        given = ["wordmill", "generate", *arguments, "--precision", "fp32", "--threads", "1"]
        monkeypatch.setattr("sys.argv", given if "--model" in arguments else [*given, "--model", str(model)])
        content = standard_input.encode() if isinstance(standard_input, str) else standard_input or b""
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        monkeypatch.setattr("sys.stdin.isatty", lambda: standard_input is None)
        monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    return called


def test_arguments_files_and_standard_input_give_the_same_texts(call: Call, tmp_path: Path) -> None:
    status, out, err = call("Once", "It was long ago", "--max-tokens", "20")
    assert (status, err) == (0, "")
    assert out.startswith("Once")
    (tmp_path / "prompts.txt").write_text("Once\n\nIt was long ago\n")
    assert call("--file", str(tmp_path / "prompts.txt"), "--max-tokens", "20") == (0, out, "")
    assert call("--max-tokens", "20", standard_input="Once\nIt was long ago\n") == (0, out, "")
    alone = call("It was long ago", "--max-tokens", "20")[1]
    assert out.endswith(alone)
    assert call("It was long ago", "--max-tokens", "20", terminal=True)[1] == alone  # streamed
    whole = call("--whole", "--max-tokens", "20", "--json", standard_input="Once\nIt was\n")[1]
    assert json.loads(whole)["prompt"] == "Once\nIt was"


def test_lines_end_at_line_feeds_alone(call: Call, tmp_path: Path) -> None:
    """And a byte order mark is no part of the first one. The same for files and for standard input."""
    inside = ["one\u2028two", "a\u0085b\u2029c", "x\fy\vz", "p\x1cq\x1dr\x1es", "half\rway", "last"]
    for mark in ("", "\ufeff"):
        for end in ("\n", "\r\n"):
            content = (mark + end.join(inside) + end).encode()
            (tmp_path / "prompts.txt").write_bytes(content)
            from_file = call("--file", str(tmp_path / "prompts.txt"), "--max-tokens", "1", "--json")[1]
            assert [json.loads(line)["prompt"] for line in from_file.split("\n")[:-1]] == inside
            assert call("--max-tokens", "1", "--json", standard_input=content)[1] == from_file
            assert call("--file", "-", "--max-tokens", "1", "--json", standard_input=content)[1] == from_file
            whole = call("--whole", "--max-tokens", "1", "--json", standard_input=content)[1]
            assert json.loads(whole)["prompt"] == end.join(inside)


def test_a_session_at_the_terminal(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line, its continuation, the next line; a mistake and Ctrl-C in a text do not end it, Ctrl-D does."""
    typed = iter(["Once", "", "x" * 100, "stop", "It was", EOFError])

    def line(prompt: str) -> str:
        found = next(typed)
        if found == "stop":
            monkeypatch.setattr("pipeline.generate.write", interrupted)
        elif found == "It was":
            monkeypatch.setattr("pipeline.generate.write", write)
        if not isinstance(found, str):
            raise found
        return found

    def interrupted(*_: Any) -> Any:
        yield 0, Piece("and")
        raise KeyboardInterrupt

    alone = [call(prompt, "--max-tokens", "9", terminal=True)[1] for prompt in ("Once", "It was")]
    monkeypatch.setattr("builtins.input", line)
    status, out, err = call("--max-tokens", "9", standard_input=None, terminal=True)
    assert (status, out) == (0, f"{alone[0]}stopand\n{alone[1]}\n")
    assert err.splitlines() == [
        "Type the beginning of a text and press Enter. Ctrl-D ends the session.",
        "wordmill: prompt 1 has 101 tokens; the context holds 1 to 63",
    ]


def test_it_says_that_it_compiles(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """numba's own event is what tells; so nothing is said when the machine code is there."""

    @njit  # type: ignore[untyped-decorator]
    def doubled(number: int) -> int:
        return 2 * number

    for expected in (1, 0):
        with saying_so():
            doubled(1)
        assert capsys.readouterr().err.count("compiling the decoder") == expected


def test_json_has_the_models_own_log_probabilities(call: Call, model: Path) -> None:
    told = call("Once", "--count", "2", "--max-tokens", "12", "--json", "--logprobs", "2", "--top-k", "9")[1]
    first, second = (json.loads(line) for line in told.splitlines())
    assert (first["seed"], second["seed"]) == (1, 2)
    assert first["text"] != second["text"]
    assert first["finish_reason"] == "length"
    exact = folder.load(model).eval()(torch.tensor([[256, *b"Once"]]))[0, -1].log_softmax(-1)
    token: dict[str, Any] = first["tokens"][0]
    assert max(token["top"].values()) == pytest.approx(float(exact.max()), abs=1e-4)
    assert float((exact - token["logprob"]).abs().min()) < 1e-4


def test_past_the_context(call: Call) -> None:
    stopped = json.loads(call("Once", "--max-tokens", "300", "--json", "--logprobs", "0", "--temperature", "0")[1])
    slid = json.loads(
        call("Once", "--max-tokens", "300", "--json", "--logprobs", "0", "--slide", "--temperature", "0")[1]
    )
    assert len(stopped["tokens"]) <= 64 - 5
    assert slid["text"].startswith(stopped["text"].rstrip("\ufffd"))
    assert len(slid["tokens"]) == 300 or slid["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "--temperature", "-1"], "--temperature: -1.0 is negative; 0 is greedy"),
        (["x", "--min-p", "2"], "--min-p: 2.0 is not in [0, 1]"),
        (["x", "--presence-penalty", "3"], "--presence-penalty: 3.0 is not in [-2, 2]"),
        (["x", "--stop", ""], "--stop: the text to stop at is empty"),
        (["x", "--logprobs", "3"], "--logprobs: they are shown with --json only"),
        (["x", "--file", "y"], "prompts as arguments and --file"),
        (["--file", "nowhere.txt"], "--file: nowhere.txt: No such file"),
        ([], "standard input: no prompt in it"),
        (["x", "--temperature", "nan"], "--temperature: nan is not a finite number"),
        (["x", "--repetition-penalty", "1e-300"], "--repetition-penalty: 1e-300 is not in [0.01, 100]"),
        (["x", "--top-p", "nan"], "--top-p: nan is not a finite number"),
        (["x", "a\udcff"], "prompt 2: not UTF-8 text"),
        (["x" * 100], "prompt 1 has 101 tokens; the context holds 1 to 63"),
        (["x", "--model", "nowhere"], "nowhere: no model there"),
        (["x", "--max-tokens", "0"], "--max-tokens"),
        (["x", "--no-such"], "No such option: --no-such; `"),
        (["x", "--device", "tpu"], "--device: input"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_one_line(call: Call, arguments: list[str], said: str) -> None:
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert err.startswith("wordmill: ")
