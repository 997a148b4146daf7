"""The report's pictures: drawn by matplotlib from the curves and metrics, the same bytes on every run.

Each chart is a function from figures to a matplotlib figure, in the table `CHARTS` by name. Charts whose figures a
run does not have (a corpus of unknown entropy, say) leave that part out.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

BASE, DPO, LIMIT, VALIDATION = "#2f6db3", "#d9772b", "#5f6b76", "#b3362f"
MODELS = (("base", "base", BASE), ("dpo", "DPO", DPO))  # in the figures, on the page, and drawn
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "wordmill",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e7eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
THOUSANDS = EngFormatter(sep="")  # 250k, 3.3M: long numbers run into each other
NARROW = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)  # ticks of each decade, on a log axis that spans less than one
WIDE = (1.0, 2.0, 5.0)  # and on one that spans a few
LONGEST = 16  # bytes; longer tokens share a bar

Curve = dict[str, np.ndarray]


@dataclass(frozen=True)
class Figures:
    """What the charts are drawn from."""

    pretrain: Curve  # columns of reports/pretrain/curve.csv; nan where a step has no value
    dpo: Curve
    evaluate: dict[str, Any]
    lengths: dict[str, list[int]]  # tokens by their length in bytes, from 1 on: of the vocabulary, of the text


def read_curve(path: Path) -> Curve:
    """The columns of a curve's CSV as float arrays, nan for empty cells."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def loss_by_tokens(figures: Figures) -> Figure:
    """Training and validation loss in nats per token against the tokens seen."""
    figure, (axes,) = _panels(1)
    _losses(axes, figures.pretrain, _at_every_step(figures.pretrain, "tokens"))
    axes.set(xlabel="tokens seen", title="Loss against tokens")
    axes.xaxis.set_major_formatter(THOUSANDS)
    return figure


def loss_by_flops(figures: Figures) -> Figure:
    """Training and validation loss against the operations spent, both axes logarithmic."""
    figure, (axes,) = _panels(1)
    _losses(axes, figures.pretrain, _at_every_step(figures.pretrain, "flops"))
    axes.set(xlabel="training FLOPs", xscale="log", yscale="log", title="Loss against FLOPs")
    _plain_ticks(axes)
    return figure


def bits_per_byte(figures: Figures) -> Figure:
    """Validation bits per byte on the way, and the source's own entropy where it is known."""
    figure, (axes,) = _panels(1)
    curve = figures.pretrain
    x = _at_every_step(curve, "tokens")
    _line(axes, x, curve["val_bits_per_byte"], VALIDATION, "validation", marker="o")
    if "source" in figures.evaluate:
        floor = figures.evaluate["source"]["val"]["bits_per_byte"]
        axes.axhline(floor, color=LIMIT, linestyle="--", label=f"the source's entropy, {floor:.3f}")
        # The last values are the ones to tell apart: a start far above may leave the picture, the end never does.
        values = curve["val_bits_per_byte"][~np.isnan(curve["val_bits_per_byte"])]
        axes.set_ylim(floor * 0.9, max(values[-1] * 1.2, min(values.max(), 4 * floor)) * 1.05)
    axes.set(xlabel="tokens seen", ylabel="bits per byte", title="Compression of unseen text")
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.legend()
    return figure


def diagnostics(figures: Figures) -> Figure:
    """The signs of a healthy training."""
    curve = figures.pretrain
    figure, panels = _panels(6, columns=3)
    x = _at_every_step(curve, "tokens")
    for axes, (name, title, scale) in zip(
        panels,
        [
            ("lr", "learning rate", "linear"),
            ("grad_norm", "gradient norm before clipping", "log"),
            ("param_norm", "parameter norm", "linear"),
            ("update_ratio", "update / parameter norm", "log"),
            ("logit_entropy", "entropy of predictions, nats", "linear"),
            ("loss", "training loss, nats per token", "linear"),
        ],
        strict=True,
    ):
        _line(axes, x, curve[name], BASE)
        axes.set(title=title, yscale=scale)
        axes.xaxis.set_major_formatter(THOUSANDS)
        if scale == "log":
            _plain_ticks(axes)
    for axes in panels[3:]:
        axes.set_xlabel("tokens seen")
    return figure


def dpo_curves(figures: Figures) -> Figure:
    """Rewards, and how often the chosen answer has the higher one, while DPO trains."""
    curve = figures.dpo
    figure, (rewards, accuracy) = _panels(2, columns=2)
    x = curve["step"]
    _line(rewards, x, curve["reward_chosen"], BASE, "chosen", alpha=0.35)
    _line(rewards, x, curve["reward_rejected"], VALIDATION, "rejected", alpha=0.35)
    _line(rewards, x, curve["held_out_reward_chosen"], BASE, "chosen, held out", marker="o")
    _line(rewards, x, curve["held_out_reward_rejected"], VALIDATION, "rejected, held out", marker="o")
    rewards.set(xlabel="step", title="Implicit rewards")
    rewards.legend(framealpha=0.8, frameon=True, edgecolor="none")
    _line(accuracy, x, curve["accuracy"], LIMIT, "training pairs", alpha=0.35)
    # Before the first step all rewards are 0 and nothing is higher: that point says nothing.
    held_out = np.where(x > 0, curve["held_out_accuracy"], np.nan)
    _line(accuracy, x, held_out, DPO, "held-out pairs", marker="o")
    accuracy.set(xlabel="step", title="Chosen answer has the higher reward", ylim=(0, 1.02))
    accuracy.legend()
    return figure


def before_and_after(figures: Figures) -> Figure:
    """Base and DPO model side by side, with 95 % intervals."""
    measures = [("preferences", "accuracy", "prefers the chosen answer"), ("stories", "sensible", "sensible stories")]
    measures = [measure for measure in measures if measure[0] in figures.evaluate["base"]]
    figure, panels = _panels(len(measures), columns=len(measures))
    for axes, (group, name, title) in zip(panels, measures, strict=True):
        for place, (model, _, colour) in enumerate(MODELS):
            value, low, high = (figures.evaluate[model][group][f"{name}{end}"] for end in ("", "_low", "_high"))
            axes.bar(place, value, 0.6, color=colour)
            axes.errorbar(place, value, [[value - low], [high - value]], color="black", capsize=5)
            axes.text(place, high + 0.02, f"{100 * value:.1f} %", ha="center")
        axes.set(title=title, xlim=(-0.7, 1.7), ylim=(0, 1.1), xticks=[0, 1], xticklabels=["base", "DPO"])
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
        axes.grid(visible=False, axis="x")
    return figure


def loss_by_position(figures: Figures) -> Figure:
    """Test loss against the tokens that came before, with 95 % intervals."""
    figure, (axes,) = _panels(1)
    for model, label, colour in MODELS:
        rows = figures.evaluate["series"][model]["loss_by_position"]
        middle = [(row["from"] * row["to"]) ** 0.5 for row in rows]
        axes.plot(middle, [row["loss"] for row in rows], color=colour, label=label, marker="o", markersize=3.5)
        low, high = ([row[f"loss_{end}"] for row in rows] for end in ("low", "high"))
        axes.fill_between(middle, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="tokens before the one predicted", ylabel="nats per token", title="Test loss by position")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def calibration(figures: Figures) -> Figure:
    """How often the likeliest token came, against how likely the model held it, and how many tokens that speaks for."""
    figure, (accuracy, amounts) = _panels(2, columns=2)
    accuracy.plot([0, 1], [0, 1], color=LIMIT, linestyle="--", linewidth=1, label="as sure as right")
    for model, label, colour in MODELS:
        rows = figures.evaluate["series"][model]["calibration"]
        error = figures.evaluate[model]["calibration"]["expected_calibration_error"]
        sure, right = [row["confidence"] for row in rows], [row["accuracy"] for row in rows]
        accuracy.plot(
            sure, right, color=colour, marker="o", markersize=3.5, label=f"{label}, error {100 * error:.2f} %"
        )
        middle, width = [(row["from"] + row["to"]) / 2 for row in rows], rows[0]["to"] - rows[0]["from"]
        shares = np.array([row["tokens"] for row in rows])
        amounts.step(middle, shares / shares.sum(), where="mid", color=colour, label=label)
    accuracy.set(xlabel="confidence", title="Accuracy by confidence", xlim=(0, 1), ylim=(0, 1.02))
    accuracy.legend()
    amounts.set(xlabel=f"confidence, in bins of 1/{round(1 / width)}", title="Share of test tokens", xlim=(0, 1))
    amounts.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    amounts.legend()
    return figure


def tokens_by_length(figures: Figures) -> Figure:
    """How long tokens are, in the vocabulary and in the training text."""
    figure, (axes,) = _panels(1)
    for name, colour, side in (("vocabulary", LIMIT, -0.2), ("text", BASE, 0.2)):
        amounts = np.array(figures.lengths[name])
        longer = amounts[LONGEST:].sum()
        shown = np.append(amounts[:LONGEST], [longer] if len(amounts) > LONGEST else []) / max(1, amounts.sum())
        axes.bar(np.arange(1, len(shown) + 1) + side, shown, 0.4, color=colour, label=name)
    last = f" (the last: more than {LONGEST})" if len(amounts) > LONGEST else ""
    axes.set(xlabel=f"bytes of a token{last}", title="Tokens by length")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    axes.grid(visible=False, axis="x")
    axes.legend()
    return figure


FROM_TRAINING = ("loss_by_tokens", "bits_per_byte", "loss_by_flops", "diagnostics")  # a given model has none of these

CHARTS: dict[str, Callable[[Figures], Figure]] = {
    "loss_by_tokens": loss_by_tokens,
    "bits_per_byte": bits_per_byte,
    "loss_by_flops": loss_by_flops,
    "diagnostics": diagnostics,
    "dpo": dpo_curves,
    "before_and_after": before_and_after,
    "loss_by_position": loss_by_position,
    "calibration": calibration,
    "tokens_by_length": tokens_by_length,
}


def drawable(figures: Figures) -> list[str]:
    """The charts that there are figures for."""
    trained = "loss" in figures.pretrain
    return [name for name in CHARTS if trained or name not in FROM_TRAINING]


def draw(name: str, figures: Figures) -> tuple[bytes, str]:
    """The chart as PNG and as an SVG element, both without a date."""
    with matplotlib.rc_context(STYLE):
        figure = CHARTS[name](figures)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=96)  # the widest, 13.2 inches, fits a window of 1,300 pixels
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    text = svg.getvalue()
    return png.getvalue(), text[text.index("<svg") :]


def _panels(count: int, columns: int = 1) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    figure = Figure(figsize=(7.2 if columns == 1 else 4.4 * columns, 3.6 * rows), layout="constrained")
    if rows > 1:
        figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[call-arg,union-attr]
    return figure, list(np.atleast_1d(figure.subplots(rows, columns)).flat)


def _losses(axes: Axes, curve: Curve, x: np.ndarray) -> None:
    _line(axes, x, curve["loss"], BASE, "training", alpha=0.7)
    _line(axes, x, curve["val_loss"], VALIDATION, "validation", marker="o")
    axes.set(ylabel="nats per token")
    axes.legend()


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str | None = None, **style: Any) -> None:
    known = ~np.isnan(y)
    axes.plot(x[known], y[known], color=colour, label=label, markersize=3.5, linewidth=1.6, **style)


def _plain_ticks(axes: Axes) -> None:
    """Numbers as people write them on a logarithmic y axis, and enough of them where it spans little."""
    low, high = axes.get_ylim()
    ticks = NARROW if high / low < 10 else WIDE if high / low < 1000 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _at_every_step(curve: Curve, name: str) -> np.ndarray:
    """A column that grows evenly with the step, also at steps that were not logged."""
    known = ~np.isnan(curve[name])
    return curve["step"] * (curve[name][known][-1] / curve["step"][known][-1])
