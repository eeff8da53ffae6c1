"""Draws the figures of docs/theory as SVG files, from the formulas and from our own losses and blocks.

    python benchmarks/theory_figures.py

Panels are light on purpose: an SVG in an `img` doesn't learn of the page's dark mode.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pfld_edge_train.losses import wing_loss

Array = NDArray[np.float64]
FOLDER = Path(__file__).parents[1] / "docs/theory/figures"
INK, SOFT, PANEL = "#1f2933", "#9aa5b1", "#f7f9fb"
COLORS = ("#2a6fdb", "#d1495b", "#2e933c", "#b07d2b")


def svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    """Frame a drawing."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="13" role="img"><title>{title}</title>'
        f'<rect width="{width}" height="{height}" rx="8" fill="{PANEL}"/>' + "".join(parts) + "</svg>\n"
    )


def text(x: float, y: float, words: str, anchor: str = "middle", color: str = INK, size: int = 13) -> str:
    """Write a line."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" font-size="{size}">{words}</text>'


def box(x: float, y: float, words: str, color: str = COLORS[0], width: float = 172, height: float = 30) -> str:
    """A layer: its centre is x, its top y."""
    return (
        f'<rect x="{x - width / 2:.1f}" y="{y:.1f}" width="{width}" height="{height}" rx="5" fill="white" '
        f'stroke="{color}" stroke-width="1.6"/>' + text(x, y + height / 2 + 4.5, words)
    )


def arrow(*points: tuple[float, float]) -> str:
    """A line with a head at its end, downwards or sideways."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    (x0, y0), (x1, y1) = points[-2:]
    dx, dy = np.sign(x1 - x0), np.sign(y1 - y0)
    head = f"{x1:.1f},{y1:.1f} {x1 - 7 * dx + 4 * dy:.1f},{y1 - 7 * dy + 4 * dx:.1f} "
    head += f"{x1 - 7 * dx - 4 * dy:.1f},{y1 - 7 * dy - 4 * dx:.1f}"
    return (
        f'<polyline points="{path}" fill="none" stroke="{SOFT}" stroke-width="1.6"/><polygon points="{head}" '
        f'fill="{SOFT}"/>'
    )


def chain(x: float, y: float, layers: Sequence[tuple[str, str]], gap: float = 24) -> tuple[list[str], float]:
    """Boxes under each other; the drawing and where it ends."""
    parts = []
    for words, color in layers:
        parts += [arrow((x, y), (x, y + gap)), box(x, y + gap, words, color)]
        y += gap + 30
    return parts, y


def plus(x: float, y: float, sign: str = "+") -> str:
    """A circle that adds."""
    circle = f'<circle cx="{x}" cy="{y}" r="11" fill="white" stroke="{INK}" stroke-width="1.4"/>'
    return circle + text(x, y + 5, sign, size=16)


def plot(
    curves: Sequence[tuple[str, Array, Array]], x_name: str, y_name: str, title: str, y_top: float, log_x: bool = False
) -> str:
    """Curves in one frame, each with its name at the right."""
    width, height, left, right, top, bottom = 640, 300, 60, 170, 20, 45
    xs = np.concatenate([np.log2(x) if log_x else x for _, x, _ in curves])
    low, high = float(xs.min()), float(xs.max())

    def at(x: float, y: float) -> tuple[float, float]:
        along = (np.log2(x) if log_x else x) - low
        return left + along / (high - low) * (width - left - right), height - bottom - y / y_top * (
            height - top - bottom
        )

    parts = [f'<path d="M{left},{top} V{height - bottom} H{width - right}" fill="none" stroke="{INK}"/>']
    for step in range(5):
        value = y_top * step / 4
        place = at(2**low if log_x else low, value)
        parts += [text(left - 8, place[1] + 4, f"{value:.3g}", "end"), line(left, place[1], width - right, place[1])]
    ticks = 2.0 ** np.arange(np.ceil(low), high + 0.1) if log_x else np.linspace(low, high, 5)
    parts += [text(at(float(tick), 0)[0], height - bottom + 18, f"{tick:.3g}") for tick in ticks]
    parts += [text((left + width - right) / 2, height - 8, x_name), text(left, 14, y_name, "start")]
    for (name, x, y), color in zip(curves, COLORS, strict=False):
        points = [at(float(a), float(b)) for a, b in zip(x, y, strict=True) if b <= y_top * 1.001]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(text(points[-1][0] + 8, points[-1][1] + 4, name, "start", color))
    return svg(width, height, parts, title)


def line(x0: float, y0: float, x1: float, y1: float) -> str:
    """A faint line."""
    return f'<path d="M{x0:.1f},{y0:.1f} L{x1:.1f},{y1:.1f}" stroke="{SOFT}" stroke-width="0.4"/>'


def separable() -> str:
    """Cost of a separable convolution over the full one, by output channels."""
    channels = np.array([4, 8, 16, 32, 64, 128, 256, 512], float)
    curves = [(f"{k} x {k}", channels, 1 / channels + 1 / k**2) for k in (3, 5, 7)]
    return plot(curves, "output channels", "cost: separable / full", "1/D + 1/K2", 0.4, log_x=True)


def inverted_residual() -> str:
    """The block, with the tensor's width."""
    layers = [
        ("1x1, C to tC, ReLU", COLORS[0]),
        ("depthwise 3x3, ReLU", COLORS[2]),
        ("1x1, tC to C, linear", COLORS[0]),
    ]
    parts, end = chain(220, 40, layers)
    parts += [text(220, 32, "C channels"), arrow((220, end), (220, end + 22)), plus(220, end + 33)]
    parts += [arrow((300, 50), (340, 50), (340, end + 33), (232, end + 33)), arrow((220, end + 44), (220, end + 70))]
    parts += [f'<path d="M220,50 H300" stroke="{SOFT}" stroke-width="1.6"/>', text(350, 130, "shortcut", "start")]
    for y, words in ((94, "wide: tC channels"), (148, "wide: tC channels"), (202, "thin: C channels")):
        parts.append(text(130, y + 14, words, "end", SOFT))
    return svg(480, int(end + 80), parts, "The inverted residual: expand, filter, project, add")


def ghost_bottleneck() -> str:
    """Stride 1 and stride 2 side by side."""
    parts: list[str] = []
    first = [("Ghost module, ReLU", COLORS[0]), ("Ghost module, linear", COLORS[0])]
    second = [first[0], ("depthwise 3x3, stride 2", COLORS[2]), first[1]]
    shortcut = [("depthwise 3x3, stride 2", COLORS[2]), ("1x1, linear", COLORS[0])]
    for x, layers, words in ((120, first, "stride 1"), (400, second, "stride 2")):
        drawn, end = chain(x, 50, layers)
        parts += [*drawn, text(x, 28, words, size=15), arrow((x, end), (x, 225)), plus(x, 236)]
        parts.append(arrow((x, 247), (x, 272)))
    parts += [arrow((120, 58), (230, 58), (230, 236), (132, 236))]
    drawn, end = chain(600, 50, shortcut)
    parts += [*drawn, f'<path d="M400,52 H600" stroke="{SOFT}" stroke-width="1.6"/>']
    parts += [arrow((600, end), (600, 236), (412, 236))]
    return svg(700, 285, parts, "The Ghost bottleneck with stride 1 and stride 2")


def mobileone() -> str:
    """Training and inference form."""
    parts: list[str] = [text(270, 26, "in training", size=15), text(640, 26, "at inference", size=15)]
    for x, layers in (
        (90, [("3x3", COLORS[0]), ("BatchNorm", COLORS[3])]),
        (210, [("3x3", COLORS[0]), ("BatchNorm", COLORS[3])]),
        (330, [("1x1", COLORS[2]), ("BatchNorm", COLORS[3])]),
        (450, [("BatchNorm", COLORS[3])]),
    ):
        y = 56.0
        parts.append(f'<path d="M270,46 H{x} V56" fill="none" stroke="{SOFT}" stroke-width="1.6"/>')
        for words, color in layers:
            parts += [arrow((x, y), (x, y + 20)), box(x, y + 20, words, color, width=96)]
            y += 50
        parts.append(f'<path d="M{x},{y} V180 H270" fill="none" stroke="{SOFT}" stroke-width="1.6"/>')
    parts += [
        text(150, 96, "...", size=18),
        plus(270, 191),
        arrow((270, 202), (270, 222)),
        box(270, 222, "ReLU", width=80),
    ]
    parts += [arrow((640, 46), (640, 106)), box(640, 106, "3x3 with bias", COLORS[0], width=130)]
    parts += [arrow((640, 136), (640, 222)), box(640, 222, "ReLU", width=80)]
    return svg(740, 270, parts, "A MobileOne block: branches in training, one convolution at inference")


def relu_spiral() -> str:
    """A plane curve embedded, through ReLU, and back."""
    turn = np.linspace(0.2, 1, 240) * 4 * np.pi
    curve = np.stack([np.cos(turn), np.sin(turn)], 1) * (turn / turn.max())[:, None]
    parts: list[str] = []
    rng = np.random.default_rng(4)
    for column, dims in enumerate((0, 3, 30)):
        points = curve
        if dims:
            matrix = rng.normal(size=(2, dims))
            points = np.maximum(curve @ matrix, 0) @ np.linalg.pinv(matrix)
            points = points / np.abs(points).max()
        x, y = 120 + 210 * column + 80 * points[:, 0], 120 + 80 * points[:, 1]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLORS[column]}" stroke-width="1.8"/>')
        parts.append(text(120 + 210 * column, 232, f"through ReLU in {dims} dimensions" if dims else "the input"))
    return svg(660, 250, parts, "A spiral through ReLU in few and in many dimensions")


def wing() -> str:
    """Wing loss as training computes it, its gradient, and L2."""
    errors = torch.linspace(0.02, 20, 201, dtype=torch.float64, requires_grad=True)
    loss = wing_loss(errors.view(-1, 1, 1), torch.zeros(201, 1, 1, dtype=torch.float64)).flatten()
    loss.sum().backward()
    x = errors.detach().numpy()
    if errors.grad is None:
        raise RuntimeError("the loss has no gradient")
    curves = [
        ("wing", x, loss.detach().numpy()),
        ("5 x its gradient", x, 5 * errors.grad.numpy()),
        ("L2 / 4", x, x**2 / 4),
    ]
    return plot(curves, "error in pixels", "loss", "Wing loss, w = 10, epsilon = 2", 28)


def main() -> None:
    """Write all figures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in {
        "separable": separable,
        "inverted-residual": inverted_residual,
        "ghost-bottleneck": ghost_bottleneck,
        "mobileone": mobileone,
        "relu-spiral": relu_spiral,
        "wing": wing,
    }.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
