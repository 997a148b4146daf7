"""`llm.decoder` for the CPU: prompts through the model, each by itself, and then steps of machine code.

Weights are packed once, layer upon layer, in the format of `compute`; reading a prompt takes these too, so that torch
need not convert them anew each time. A batch keeps its keys and values in a cache of fixed size; a row that ends gives
up its slot, and nothing is moved. So each row's figures are the same in any batch, to the bit; products of torch's, in
bf16 above all, depend on how many rows they have.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from llm import decoder_kernels as kernels
from llm.compute import Compute
from llm.decoder import Decoder, decoder_for
from llm.errors import WordmillError
from llm.model.exact import unknown_part
from llm.model.positions import Rope
from llm.model.transformer import Block, Cache, Transformer

KINDS = {"swiglu": kernels.SWIGLU, "gelu": kernels.GELU, "relu": kernels.RELU, "relu2": kernels.RELU2}

AVAILABLE = numba.get_num_threads()  # numba starts no more than these


def fastest(model: Transformer, compute: Compute) -> Decoder:
    """The decoder for few rows: compiled on the CPU in fp32 or bf16, the model's own code elsewhere and for parts that
    the compiled one does not know."""
    compiled = compute.device.type == "cpu" and compute.dtype != torch.float16 and unknown_part(model) is None
    return CompiledDecoder(model, compute) if compiled else decoder_for(model, compute)


class CompiledDecoder:
    """A copy of `model` in the format of `compute`.

    Raises WordmillError unless that is the CPU in fp32 or bf16, and for a model with parts that it does not know.
    """

    @torch.no_grad()
    def __init__(self, model: Transformer, compute: Compute) -> None:
        if compute.device.type != "cpu" or compute.dtype == torch.float16:
            raise WordmillError(f"compiled decoding is for the CPU in fp32 or bf16, not for {compute}")
        if part := unknown_part(model):
            raise WordmillError(f"compiled decoding does not know {part}; use the decoder that runs the model itself")
        self.model = model = copy.deepcopy(model).to(compute.device).eval()
        self.config = config = model.config
        self.vocab_size = model.vocab_size
        self.compute = compute
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        expand = "gate_up" if config.feed_forward == "swiglu" else "up"

        def each(*names: str) -> list[list[Any]]:
            """The modules of these names, layer by layer; None for one that no layer has."""
            return [[block.get_submodule(name) if name else None for block in blocks] for name in names]

        qk_norms = ("attention.q_norm", "attention.k_norm") if config.qk_norm else ("", "")
        norms = [*each("attention_norm", "feed_forward_norm", *qk_norms), [model.norm]]
        linears = [*each("attention.qkv", "attention.out", f"feed_forward.{expand}", "feed_forward.down"), [model.head]]
        self.norms = tuple(array for layers in norms for array in _norms(layers))
        self.biases = tuple(map(_biases, linears))
        *by_layer, head = map(self._packed, linears)
        self.weights = (*by_layer, head[0])
        position = model.position
        tables = (position.cos, position.sin) if isinstance(position, Rope) else (torch.empty(1, 0), torch.empty(1, 0))
        self.turns = isinstance(position, Rope)
        half = tables[0].shape[1] // 2
        self.cos, self.sin = (table[:, :half].float().contiguous().numpy() for table in tables)

    def read(self, prompts: Sequence[Sequence[int]], room: int) -> "CompiledReading":
        return CompiledReading(self, prompts, room)

    def _packed(self, linears: list[nn.Linear]) -> np.ndarray:
        """The matrices of all layers in one array, of which each layer's own is a view from now on."""
        whole = torch.empty(len(linears), *linears[0].weight.shape, dtype=self.compute.dtype)
        for matrix, linear in zip(whole, linears, strict=True):
            matrix.copy_(linear.weight)
            linear.weight = nn.Parameter(matrix, requires_grad=False)
        return (whole.view(torch.uint16) if whole.dtype == torch.bfloat16 else whole).numpy()


def _norms(norms: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Gains and biases by layer. A bias of width 0 tells an RMSNorm; a norm that is not there has a gain of width 0."""
    empty = np.zeros((len(norms), 0), np.float32)
    if norms[0] is None:
        return empty, empty
    gains = np.stack([norm.weight.float().numpy() for norm in norms if norm])
    if isinstance(norms[0], nn.RMSNorm):
        return gains, empty
    given = [norm.bias for norm in norms if norm]
    zeros = np.zeros_like(gains[0])
    return gains, np.stack([zeros if bias is None else bias.float().numpy() for bias in given])


def _biases(linears: list[Any]) -> np.ndarray:
    zeros = np.zeros(len(linears[0].weight), np.float32)
    return np.stack([zeros if linear.bias is None else linear.bias.float().numpy() for linear in linears])


class CompiledReading:
    """A batch that other rows may join, up to `slots` at a time."""

    def __init__(self, decoder: CompiledDecoder, prompts: Sequence[Sequence[int]], room: int, slots: int = 0) -> None:
        self._decoder = decoder
        config = decoder.config
        slots = max(slots, len(prompts))
        heads = (config.n_layer, slots, config.n_kv_head)
        self._keys = np.empty((*heads, config.d_head, room), np.float32)
        self._values = np.empty((*heads, room, config.d_head), np.float32)
        self._scores = np.empty((slots * config.n_head, room), np.float32)
        self._slots = np.arange(len(prompts))
        self._lengths = np.zeros(len(prompts), np.int64)
        self.logits = torch.empty(len(prompts), decoder.vocab_size)
        for row, prompt in enumerate(prompts):
            self.again(row, prompt)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> None:
        decoder = self._decoder
        x = decoder.model.embedding(tokens)  # (B, D), fp32
        if not decoder.turns:
            x = decoder.model.position(x[:, None], torch.from_numpy(self._lengths)[:, None])[0][:, 0].contiguous()
        self.logits = torch.empty(len(tokens), decoder.vocab_size)
        numba.set_num_threads(min(decoder.compute.threads, AVAILABLE))  # a thread's own setting
        kernels.step(
            x.numpy(), self._slots, self._lengths, self._keys, self._values, self._scores,
            decoder.config.n_head, KINDS[decoder.config.feed_forward], decoder.config.norm_eps,
            decoder.cos, decoder.sin, decoder.norms, decoder.biases, decoder.weights, self.logits.numpy(),
        )  # fmt: skip
        self._lengths += 1

    def join(self, ids: Sequence[int], room: int) -> None:
        """Add a row, the last one, which reads `ids`. It may hold as many tokens as all other rows."""
        free = np.setdiff1d(np.arange(self._keys.shape[1]), self._slots)[:1]
        self._slots, self._lengths = np.append(self._slots, free), np.append(self._lengths, 0)
        self.logits = torch.cat([self.logits, torch.empty(1, self._decoder.vocab_size)])
        self.again(len(self._slots) - 1, ids)

    def keep(self, rows: Tensor) -> None:
        self._slots, self._lengths = self._slots[rows.numpy()], self._lengths[rows.numpy()]
        self.logits = self.logits[rows]

    @torch.no_grad()
    def again(self, row: int, ids: Sequence[int]) -> None:
        model, compute = self._decoder.model, self._decoder.compute
        cache = Cache(model.config, 1, len(ids), torch.empty(0, dtype=compute.dtype))
        with compute.autocast():
            self.logits[row] = model.head(model.hidden(torch.tensor([ids]), cache)[0, -1]).float()
        slot = self._slots[row]
        self._keys[:, slot, :, :, : len(ids)] = cache.keys[:, 0].transpose(-2, -1).float().numpy()
        self._values[:, slot, :, : len(ids)] = cache.values[:, 0].float().numpy()
        self._lengths[row] = len(ids)
