"""Where pictures are drawn: new figures, axes that were given, and grids of panels in them."""

from collections.abc import Sequence
from datetime import date, time, timedelta
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._advice import warn
from .._table.column import is_missing
from ._room import Room, cut, fit_into, scale_texts, territory

BESIDE = 0.4  # of the width of a panel, for texts beside bars and for a legend
GREY = "0.75"  # of what has no colour of its own


class Panel(NamedTuple):
    """The size of one panel, in inches, and how many stand beside each other."""

    size: tuple[float, float]  # in a figure of its own
    least: tuple[float, float] = (1.9, 1.5)  # in axes that were given
    n_columns: int = 1
    layout: str = "constrained"  # "compressed" for axes of equal aspect


class Panels(NamedTuple):
    """Axes to draw on, and the room that they have.

    Attributes
    ----------
    axes : ndarray of matplotlib Axes of shape (n_panels,)
        As many as there is room for.
    room : Room
        Of one panel.
    grids : list of tuple
        Grids of axes and the part of the figure that each may fill; of a new figure none.
    """

    axes: NDArray[Any]
    room: Room
    grids: list[tuple[NDArray[Any], Any]]

    @property
    def figure(self) -> Any:
        return self.axes[0].figure

    def settle(self) -> None:
        """Let all texts be read in axes that were given; the layout of a new figure does it."""
        for grid, place in self.grids:
            for ax in grid.ravel():
                scale_texts(ax, self.room)
            fit_into(grid, place)


class Display:
    """A picture that keeps where it was drawn."""

    def _on(self, ax: Any, n_panels: int, panel: Panel) -> Panels:
        """Return panels to draw on: new ones, or in axes that were given."""
        panels = panels_for(type(self).__name__, ax, n_panels, panel)
        self.figure_, self.axes_, self.ax_ = panels.figure, panels.axes, panels.axes[0]
        return panels


def check_matplotlib(name: str) -> None:
    """Raise an ImportError that says how to install matplotlib where it is absent."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{name} draws with matplotlib, which is not installed. Use pip install "skvae[plot]".'
        ) from error


def panels_for(name: str, ax: Any, n_panels: int, panel: Panel) -> Panels:
    """Return panels in a new figure, axes that were given, or panels within one that was given."""
    check_matplotlib(name)
    from matplotlib.axes import Axes

    if isinstance(ax, Axes):
        return _panels_within(name, ax, n_panels, panel)
    shape = grid_shape(n_panels, panel.n_columns)
    if ax is None:
        from matplotlib import pyplot

        size = (panel.size[0] * shape[1], panel.size[1] * shape[0])
        figure = pyplot.figure(figsize=size, layout=panel.layout)
        grid = figure.subplots(*shape, squeeze=False)
        return Panels(_used(grid, n_panels), Room(*panel.size), [])
    given = np.asarray(ax, dtype=object).ravel()
    if len(given) != shape[0] * shape[1] or not all(isinstance(one, Axes) for one in given):
        raise ValueError(
            f"ax must be matplotlib Axes, or an array of {shape[0] * shape[1]} of them: {name} "
            f"draws {shape[0]} x {shape[1]} panels here. Got {ax!r}."
        )
    places = [territory(one) for one in given]
    rooms = [Room.of(one.figure, place, (1, 1)) for one, place in zip(given, places, strict=True)]
    grids = [(_grid([one], (1, 1)), place) for one, place in zip(given, places, strict=True)]
    return Panels(_used(_grid(given.tolist(), shape), n_panels), min(rooms), grids)


def _panels_within(name: str, ax: Any, n_panels: int, panel: Panel) -> Panels:
    """Return as many panels as there is room for in the place of axes that were given."""
    place = territory(ax)
    whole = Room.of(ax.figure, place, (1, 1))
    most = [max(int(have / need), 1) for have, need in zip(whole[:2], panel.least, strict=True)]
    n_columns = min(most[0], max(panel.n_columns, -(-n_panels // most[1])))
    n_drawn = min(n_panels, n_columns * most[1])
    if n_drawn < n_panels:
        warn(
            f"There is room for {n_drawn} of the {n_panels} panels of {name} in these axes. Pass "
            f"larger axes, an array of axes, or ax=None for a figure of its own."
        )
    shape = grid_shape(n_drawn, n_columns)
    grid = _grid([ax], shape) if shape == (1, 1) else _within(ax, shape)
    return Panels(_used(grid, n_drawn), Room.of(ax.figure, place, shape), [(grid, place)])


def _grid(axes: list[Any], shape: tuple[int, int]) -> NDArray[Any]:
    result = np.empty(len(axes), dtype=object)
    result[:] = axes
    return result.reshape(shape)


def _within(ax: Any, shape: tuple[int, int]) -> NDArray[Any]:
    """Split the place of axes, which become invisible themselves, into a grid."""
    ax.set_axis_off()
    place, box = ax.get_subplotspec(), ax.get_position()
    if place is not None and ax.figure.get_layout_engine() is not None:
        return place.subgridspec(*shape).subplots(squeeze=False)
    bounds = {"left": box.x0, "right": box.x1, "bottom": box.y0, "top": box.y1}
    return ax.figure.add_gridspec(*shape, **bounds).subplots(squeeze=False)


def _used(grid: NDArray[Any], n_used: int) -> NDArray[Any]:
    """Return the first panels, and let the others be empty."""
    for ax in grid.ravel()[n_used:]:
        ax.set_axis_off()
    return grid.ravel()[:n_used]


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


def draw_bars(ax: Any, room: Room, bars: "Bars") -> None:
    """Draw bars with their names on the left and texts on the right, the first one on top."""
    place = np.arange(len(bars.values))
    ax.barh(place, bars.values, color=bars.colours, height=0.7)
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.set_yticks(place, [cut(name, room.letters(0.3)) for name in bars.names])
    ax.invert_yaxis()
    longest = room.letters(BESIDE, "x-small")
    beside: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
    beside |= {"xycoords": ax.get_yaxis_transform(), "annotation_clip": False}
    for row, text in enumerate(bars.texts):
        text = text if len(text) <= longest else text.replace(" (", "\n(")
        ax.annotate(text, (1.0, row), fontsize=room.points("x-small"), **beside)


class Bars(NamedTuple):
    """What bars show: their lengths, what stands on their left and right, and their colours."""

    values: Any
    names: Sequence[str]
    texts: Sequence[str]
    colours: Any


def number_of_bars(room: Room, asked: int, longest: int = 0) -> int:
    """Return how many bars there are room for, of so many; long texts take two lines."""
    n_lines = 2 if longest > room.letters(BESIDE, "x-small") else 1
    return min(asked, max((room.lines(1.0) - 5) // n_lines, 1))


def draw_legend(ax: Any, room: Room, handles: Sequence[Any], title: str | None = None) -> None:
    """Draw a legend on the right of axes, in as few columns as there is room for."""
    title = None if not title else cut(title, room.letters(BESIDE))
    for size in ("medium", "small", "x-small"):
        n_columns = -(-len(handles) // max(room.lines(0.65, size) - bool(title), 1))
        if n_columns == 1:
            break
    for handle in handles:
        handle.set_label(cut(handle.get_label(), room.letters(BESIDE / n_columns, size)))
    points = room.points(size)
    ax.legend(
        handles=handles,
        title=title,
        ncols=n_columns,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        fontsize=points,
        title_fontsize=points,
    )


def draw_colour_bar(ax: Any, mappable: Any, label: str) -> Any:
    """Draw a colour bar on the right of axes, as high as they are."""
    return ax.figure.colorbar(mappable, cax=ax.inset_axes((1.03, 0.0, 0.05, 1.0)), label=label)


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
    return cut(text.replace("$", r"\$"), longest)  # no mathematics
