"""Pictures of profiles."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from torch import Tensor

from headway.engine.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure
else:
    Figure = Any

WRITTEN_CELLS = 128
"""A heat map with more cells does not fit their numbers."""


def heat_map(
    values: Tensor,
    title: str,
    columns: str,
    rows: str,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Figure:
    """Draw a table; cells that are NaN stay empty.

    Args:
        values: [rows, columns].
        columns, rows: what they are.
        low, high: ends of the colour scale; default: of the values.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    height, width = values.shape
    figure = _figure(max(4.0, 1.5 + 0.35 * width), max(2.4, 1.2 + 0.25 * height))
    axes = figure.add_subplot()
    image = axes.imshow(values.float().numpy(), vmin=low, vmax=high, cmap="viridis", aspect="auto")
    if values.numel() <= WRITTEN_CELLS:
        darkest, brightest = image.get_clim()
        bright = darkest + 0.6 * (brightest - darkest)
        for row, cells in enumerate(values.tolist()):
            for column, value in enumerate(cells):
                if value == value:
                    colour = "k" if value > bright else "w"
                    axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, size=7)
    axes.set(xlabel=columns, ylabel=rows, title=title, xticks=_ticks(width), yticks=_ticks(height))
    figure.colorbar(image)
    return figure


def curves(
    lines: Mapping[str, Sequence[float]], title: str, x: str, y: str, *, low: float | None = None
) -> Figure:
    """Draw named lines over 1, 2, 3 …

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = _figure(6.0, 3.6)
    axes = figure.add_subplot()
    for name, line in lines.items():
        axes.plot(range(1, len(line) + 1), line, label=name, linewidth=1)
    axes.set(xlabel=x, ylabel=y, title=title, ylim=(low, None))
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize=7, ncols=2)
    return figure


def png(figure: Figure) -> bytes:
    """The picture as a file."""
    buffer = BytesIO()
    # No date and no version in the file: the same profile gives the same bytes.
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _ticks(count: int) -> range:
    return range(0, count, -(-count // 16))


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure as NewFigure
    except ImportError as error:
        raise ConfigError("pictures need matplotlib: install headway[profile]") from error
    return NewFigure(figsize=(min(width, 14.0), min(height, 14.0)), layout="constrained")
