"""Where pictures are drawn: new figures, axes that were given, and grids of panels in them."""

from datetime import date, time, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._table.column import is_missing

GREY = "0.75"  # of what has no colour of its own


def check_matplotlib(name: str) -> None:
    """Raise an ImportError that says how to install matplotlib where it is absent."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{name} draws with matplotlib, which is not installed. Use pip install "skvae[plot]".'
        ) from error


def axes_for(name: str, ax: Any, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return a figure and axes of equal aspect to draw on: those that were given, or new ones."""
    figure, axes = panels_for(name, ax, (1, 1), size, layout="compressed")
    return figure, axes[0, 0]


def panels_for(
    name: str,
    ax: Any,
    shape: tuple[int, int],
    size: tuple[float, float],
    *,
    layout: str = "constrained",
) -> tuple[Any, NDArray[Any]]:
    """Return a figure and a grid of axes: new ones, those given, or a grid within one given."""
    check_matplotlib(name)
    from matplotlib.axes import Axes

    if ax is None:
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=size, layout=layout)
        return figure, figure.subplots(*shape, squeeze=False)
    if isinstance(ax, Axes):
        return ax.figure, _within(ax, shape) if shape != (1, 1) else _grid([ax], shape)
    given = np.asarray(ax, dtype=object).ravel()
    if len(given) != shape[0] * shape[1] or not all(isinstance(one, Axes) for one in given):
        raise ValueError(
            f"ax must be matplotlib Axes, or an array of {shape[0] * shape[1]} of them: {name} "
            f"draws {shape[0]} x {shape[1]} panels here. Got {ax!r}."
        )
    return given[0].figure, _grid(given.tolist(), shape)


def _grid(axes: list[Any], shape: tuple[int, int]) -> NDArray[Any]:
    result = np.empty(len(axes), dtype=object)
    result[:] = axes
    return result.reshape(shape)


def _within(ax: Any, shape: tuple[int, int]) -> NDArray[Any]:
    """Split the place of axes, which become invisible themselves, into a grid."""
    ax.set_axis_off()
    place, box = ax.get_subplotspec(), ax.get_position()
    if place is not None:
        return place.subgridspec(*shape).subplots(squeeze=False)
    grid = ax.figure.add_gridspec(
        *shape, left=box.x0, right=box.x1, bottom=box.y0, top=box.y1, wspace=0.4, hspace=0.4
    )
    return grid.subplots(squeeze=False)


def hide_rest(axes: NDArray[Any], n_used: int) -> None:
    """Let the panels after the first ones be empty."""
    for ax in axes.ravel()[n_used:]:
        ax.set_axis_off()


def grid_shape(n_panels: int, n_columns: int) -> tuple[int, int]:
    """Return rows and columns of a grid for so many panels."""
    n_columns = max(min(n_panels, n_columns), 1)
    return -(-n_panels // n_columns), n_columns


def colours_of(n_labels: int) -> NDArray[np.floating]:  # (L, 4)
    """Return colours that can be told apart: up to 10, up to 20, or a rainbow."""
    from matplotlib import colormaps

    if n_labels <= 20:
        cmap = colormaps["tab10" if n_labels <= 10 else "tab20"]
        return np.array([cmap(number) for number in range(n_labels)])
    return colormaps["turbo"](np.linspace(0.0, 1.0, n_labels))


def number_text(value: Any, sign: str = "") -> str:
    """Return three digits of a number, or all before the point; with ``sign="+"`` a sign, too."""
    whole = 1e3 <= abs(value) < 1e7
    return format(value, f"{sign},.0f" if whole else f"{sign}.3g")


def shown(value: Any, longest: int = 24) -> str:
    """Return how a label, level or number stands in a picture."""
    if is_missing(value):
        text = "missing"
    elif isinstance(value, tuple):
        text = ", ".join(map(str, value))
    elif isinstance(value, float | np.floating):
        text = number_text(value)
    elif isinstance(value, timedelta):
        text = f"{number_text(value / timedelta(days=1))} days"
    elif isinstance(value, date | time):
        text = value.strftime("%H:%M" if isinstance(value, time) else "%Y-%m-%d")
    else:
        text = str(value)
    text = text.replace("$", r"\$")  # no mathematics
    return text if len(text) <= longest else text[: longest - 1] + "…"
