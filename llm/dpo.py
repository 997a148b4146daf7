"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290).

The policy starts as the base model. For a prompt with a chosen and a rejected answer, the implicit reward of an
answer is β (log π(answer) - log π_ref(answer)), and the loss a function of the two answers' rewards (`llm.dpo_losses`).
The frozen reference's log-probabilities never change, so they are computed once, before training, and kept with the
checkpoints. To this comes, with a weight, the chosen answers' own cross-entropy, which keeps DPO from making both
answers less likely than they were (Pang et al. 2024, arXiv:2404.19733). Dropout stays off, as in TRL: what it adds to
the policy's log-probabilities would count as reward.

Like `llm.pretrain`, the loop is a generator of records, and resumes to the same bytes after a kill.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llm import checkpoint
from llm.compute import Compute, keep_freed_memory
from llm.devices import memory_for
from llm.dpo_config import DPOConfig
from llm.dpo_losses import preference_loss
from llm.errors import WordmillError
from llm.model.transformer import Transformer
from llm.optim.adamw import adamw
from llm.optim.guard import Guard, apply
from llm.optim.schedules import cosine
from llm.pair_scoring import Scope
from llm.training_state import Record, best, restore, save, saved_tensors

TEXTS_AT_ONCE = 32  # scored without gradients
CHECKPOINTS_KEPT = 2  # the newest, besides the best


@torch.no_grad()
def reference_logprobs(model: Transformer, scope: Scope, compute: Compute, cache: Path) -> np.ndarray:
    """Log-probabilities (2, pairs in the order of `scope`) under the frozen reference; read from `cache` if there."""
    found = checkpoint.latest(cache)
    if found is None:
        both = _score(model, scope, compute)
        checkpoint.write(cache, 0, {"logprobs": torch.from_numpy(both)}, {})
        return both
    return found[1]["logprobs"].numpy()


@torch.no_grad()
def _score(model: Transformer, scope: Scope, compute: Compute) -> np.ndarray:
    parts = []
    for start in range(0, len(scope), TEXTS_AT_ONCE):
        texts = range(start, min(start + TEXTS_AT_ONCE, len(scope)))
        parts.append(scope.logprobs(model, texts, compute, sft=False)[0].cpu().numpy())
    return np.concatenate(parts, axis=1)


def dpo(
    policy: Transformer,
    train: Scope,
    held_out: Scope,
    config: DPOConfig,
    compute: Compute,
    checkpoints: Path,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
    """Tune `policy`, which comes in as the base model, in place; resume from `checkpoints` if there is one.

    Once `stopping` says so, the step at hand is finished, a checkpoint written, and the records end.

    `train` and `held_out` are pairs in the configured scope (`llm.pair_scoring.SCOPES`). Raises WordmillError.
    """
    with memory_for(f"DPO on {compute.device} with dpo.batch_size {config.batch_size}", "lower dpo.batch_size"):
        yield from _dpo(policy, train, held_out, config, compute, checkpoints, stopping)


def _dpo(
    policy: Transformer,
    train: Scope,
    held_out: Scope,
    config: DPOConfig,
    compute: Compute,
    checkpoints: Path,
    stopping: Callable[[], bool],
) -> Iterator[Record]:
    if len(train) < config.batch_size:
        raise WordmillError(
            f"dpo.batch_size: {config.batch_size} is more than the {len(train)} training texts; "
            "lower it or raise preferences.pairs"
        )
    if not len(held_out):
        raise WordmillError("dpo: no held-out pair is left; raise preferences.held_out_share or preferences.pairs")
    keep_freed_memory()
    policy.to(compute.device).eval()
    reference = torch.from_numpy(reference_logprobs(policy, train, compute, checkpoints / "reference-train"))
    held_out_reference = reference_logprobs(policy, held_out, compute, checkpoints / "reference-held-out")
    lengths = torch.from_numpy(train.lengths)
    begins = np.cumsum([0, *map(len, train.pairs)])  # where each text's pairs stand in `reference`
    optimizer = adamw(policy, config.lr, (0.9, 0.95), config.weight_decay)
    guard = Guard(compute.device, allowed=0, scaling=compute.scales_loss)
    start, records = restore(policy, optimizer, checkpoints, guard.state, {})
    yield from records
    if not records:
        records.append(Record(0, _held_out(policy, held_out, held_out_reference, config, compute)))
        yield records[-1]

    per_epoch = len(train) // config.batch_size
    steps = per_epoch * config.epochs
    with checkpoint.Writer(checkpoints, CHECKPOINTS_KEPT) as writer:
        for step in range(start, steps):
            done = step + 1
            lr = cosine(step, steps, min(config.warmup_steps, steps - 1), config.lr, config.final_lr_share)
            for group in optimizer.param_groups:
                group["lr"] = lr
            order = np.random.Generator(np.random.PCG64([config.seed, step // per_epoch])).permutation(len(train))
            rows = order[step % per_epoch * config.batch_size :][: config.batch_size].tolist()

            policy_logprobs, sft_loss = train.logprobs(policy, rows, compute, sft=config.sft_weight > 0)
            columns = np.concatenate([np.arange(begins[i], begins[i + 1]) for i in rows])
            ratios = policy_logprobs - reference[:, columns].to(compute.device)
            tokens = lengths[:, columns].to(compute.device)
            loss = preference_loss(config.loss, ratios, tokens, config.beta, config.label_smoothing)
            if sft_loss is not None:
                loss = loss + config.sft_weight * sft_loss
            guard.scaled(loss).backward()
            guard.unscale(policy)
            grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.grad_clip)
            apply(optimizer, guard.judge(step, loss.detach(), grad_norm))
            optimizer.zero_grad()

            logging = done % config.log_every == 0 or done == steps
            evaluating = done % config.eval_every == 0 or done == steps
            regular = done % config.checkpoint_every == 0 or done == steps
            stop = stopping()
            if logging or evaluating or regular or stop:
                frozen_at = guard.frozen_at()
                if frozen_at is not None:
                    raise WordmillError(
                        f"step {frozen_at}: loss or gradient is not finite; lower dpo.lr or dpo.beta, "
                        "or set compute.precision: fp32"
                    )
            if logging:
                values = {
                    "loss": loss.item(),
                    **({} if sft_loss is None else {"sft_loss": sft_loss.item()}),
                    "lr": lr,
                    "grad_norm": grad_norm.item(),
                    **_figures(policy_logprobs.detach(), ratios.detach(), tokens, config.beta),
                }
                records.append(Record(done, values))
                yield records[-1]
            if evaluating:
                records.append(Record(done, _held_out(policy, held_out, held_out_reference, config, compute)))
                yield records[-1]
            writer.check()
            if regular or stop or (evaluating and best(records, "held_out_loss") == done):
                save(writer, done, saved_tensors(policy, optimizer, guard.state), records, "held_out_loss", {})
            if stop:
                return


def _held_out(
    policy: Transformer, scope: Scope, reference: np.ndarray, config: DPOConfig, compute: Compute
) -> dict[str, float]:
    """The same figures on pairs that are not trained on, and how often the policy alone likes the chosen one better."""
    now = torch.from_numpy(_score(policy, scope, compute))
    ratios, lengths = now - torch.from_numpy(reference), torch.from_numpy(scope.lengths)
    loss = preference_loss(config.loss, ratios, lengths, config.beta, config.label_smoothing)
    figures = {"loss": loss.item(), **_figures(now, ratios, lengths, config.beta)}
    figures["preference"] = (now[0] > now[1]).float().mean().item()
    return {f"held_out_{name}": value for name, value in figures.items()}


def _figures(logprobs: Tensor, ratios: Tensor, lengths: Tensor, beta: float) -> dict[str, float]:
    """Means over pairs, all arguments (2, B).

    `kl` is the mean of log π_ref - log π over the scored tokens of both answers, nats a token. Where the answers are
    the reference's own writing, as in the source `judged`, it estimates KL(π_ref || π) by samples, but for their
    temperature and selection; elsewhere it is the policy's drift on the given tokens, and may be negative.
    """
    margins = beta * (ratios[0] - ratios[1])
    return {
        "reward_chosen": beta * ratios[0].mean().item(),
        "reward_rejected": beta * ratios[1].mean().item(),
        "margin": margins.mean().item(),
        "accuracy": (margins > 0).float().mean().item(),
        "logprob_chosen": logprobs[0].mean().item(),
        "logprob_rejected": logprobs[1].mean().item(),
        "kl": (-ratios.sum() / lengths.sum()).item(),
    }
