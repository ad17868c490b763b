"""The room that axes have in a figure, and texts that can be read in it."""

from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

COMFORTABLE = (3.6, 2.8)  # inches: texts of a smaller panel are smaller
SMALLEST = 0.65  # of the usual size of a text
LEAST_POINTS = 6.0  # of any text
LETTER, LINE = 0.6, 1.4  # width of a letter and height of a line, by the size of the text
LETTERS_OF_DATE = 11
DATE_UNITS = (1, 3, 4, 5, 6)  # months, days, hours, minutes and seconds, as dateutil counts them
WHOLE_UNITS = (12, 31, 24, 60, 60)
MOST_TICKS = 7  # that an axis mostly has
LETTERS_OF_NUMBER = 6
GAP = 0.08  # inches between panels
EDGE = 0.03  # inches that stay free all around
TOP = 0.4  # of the space between two axes, one above the other: for the title of the lower one
SHRUNK = 0.35  # of their size: axes do not become smaller
SETTLED = 1e-3  # of the figure: smaller changes are not followed
N_ROUNDS = 5  # of fitting: what a text needs changes with the axes that it belongs to


class Room(NamedTuple):
    """How large a panel is with all its texts, in inches, and how large texts are."""

    width: float
    height: float
    scale: float = 1.0

    @classmethod
    def of(cls, figure: Any, place: Any, shape: tuple[int, int]) -> "Room":
        """Return the room of a panel of a grid in a part of a figure."""
        inches = figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi
        width = place.width * inches[0] / shape[1]
        height = place.height * inches[1] / shape[0]
        least = min(width / COMFORTABLE[0], height / COMFORTABLE[1])
        return cls(width, height, float(np.clip(least, SMALLEST, 1.0)))

    def points(self, size: str = "medium") -> float:
        """Return how large a text of a size by name is here."""
        from matplotlib.font_manager import FontProperties

        return max(self.scale * FontProperties(size=size).get_size_in_points(), LEAST_POINTS)

    def letters(self, share: float, size: str = "medium") -> int:
        """Return how many letters fit into a share of the width."""
        return max(int(share * self.width * 72.0 / (LETTER * self.points(size))), 6)

    def lines(self, share: float, size: str = "medium") -> int:
        """Return how many lines of text fit into a share of the height."""
        return max(int(share * self.height * 72.0 / (LINE * self.points(size))), 1)


def cut(text: str, longest: int) -> str:
    """Return a text of so many letters at most."""
    return text if len(text) <= longest else text[: longest - 1].rstrip("\\") + "…"


def show_dates(axis: Any, room: Room) -> None:
    """Let the numbers of an axis, days since 1970, be dates, with so few of them that they fit."""
    from matplotlib.dates import AutoDateFormatter, AutoDateLocator

    axis.axis_date()
    n_ticks = max(room.lines(0.5), 3)
    if axis.axis_name == "x" and room.letters(0.65) < 3 * LETTERS_OF_DATE:
        axis.set_tick_params(rotation=90)
    elif axis.axis_name == "x":
        n_ticks = room.letters(0.65) // LETTERS_OF_DATE
    locator = AutoDateLocator(minticks=2, maxticks=n_ticks)
    for unit, whole in zip(DATE_UNITS, WHOLE_UNITS, strict=True):
        locator.intervald[unit] = [*locator.intervald[unit], whole]  # for few ticks
    axis.set_major_locator(locator)
    axis.set_major_formatter(AutoDateFormatter(locator))


def territory(ax: Any) -> Any:
    """Return the part of the figure that belongs to axes: up to its edges and to other axes.

    What lies between two axes belongs to the right one, whose labels stand there; between one above
    the other they share it.
    """
    from matplotlib.transforms import Bbox

    box, (width, height) = ax.get_position(), ax.figure.bbox.size
    left, bottom, right, top = 0.0, 0.0, 1.0, 1.0
    for other in (_home(one) for one in ax.figure.axes if one is not ax):
        beside = min(box.y1, other.y1) - max(box.y0, other.y0) > 1e-6
        stacked = min(box.x1, other.x1) - max(box.x0, other.x0) > 1e-6
        if beside and other.x1 <= box.x0 + 1e-6:
            left = max(left, other.x1)
        if beside and other.x0 >= box.x1 - 1e-6:
            right = min(right, box.x1)
        if stacked and other.y1 <= box.y0 + 1e-6:
            bottom = max(bottom, TOP * box.y0 + (1.0 - TOP) * other.y1)
        if stacked and other.y0 >= box.y1 - 1e-6:
            top = min(top, (1.0 - TOP) * box.y1 + TOP * other.y0)
    x, y = EDGE * ax.figure.dpi / width, EDGE * ax.figure.dpi / height
    return Bbox.from_extents(left + x, bottom + y, right - x, top - y)


def _home(ax: Any) -> Any:
    """Return where axes stand, or stood before they became smaller for the sake of their texts."""
    here, place = ax.get_position(original=True), ax.get_subplotspec()
    home = here if place is None else place.get_position(ax.figure)
    inside = home.x0 <= here.x0 and home.y0 <= here.y0 and here.x1 <= home.x1 and here.y1 <= home.y1
    return home if inside else here


def scale_texts(ax: Any, room: Room) -> None:
    """Let titles and labels of axes be as large as the room allows, on several lines if need be."""
    from matplotlib.text import Text

    for one in (ax, *ax.child_axes):
        titles = [text for text in one.get_children() if isinstance(text, Text)]
        labels = [one.xaxis.label, one.yaxis.label]
        legend = one.get_legend()
        beside = bool(one.child_axes) or (legend is not None and not legend.get_frame_on())
        for text in {*titles, *labels} - {*one.texts}:
            share = 0.4 if beside else 0.75
            if text is one.yaxis.label:
                share = 0.6 * room.height / room.width
            text.set_text(fill(text.get_text(), room.letters(share)))
            if room.scale < 1.0:
                text.set_fontsize(min(text.get_fontsize(), room.points()))
        if room.scale < 1.0:
            one.tick_params(labelsize=room.points())
            _fewer_ticks(one.xaxis, room.letters(0.5) // LETTERS_OF_NUMBER)
            _fewer_ticks(one.yaxis, room.lines(0.4))
        elif (most := room.letters(0.75) // LETTERS_OF_NUMBER) < MOST_TICKS:
            _fewer_ticks(one.xaxis, most)


def _fewer_ticks(axis: Any, most: int) -> None:
    """Let an axis of numbers have so many ticks at most."""
    from matplotlib.ticker import MaxNLocator

    locator = axis.get_major_locator()
    if isinstance(locator, MaxNLocator):
        locator.set_params(nbins=max(most, 2))


def fit_into(grid: NDArray[Any], place: Any) -> None:
    """Make the axes of a grid so small that all that they show lies in a part of the figure.

    Axes that a layout engine places are left to it.
    """
    first, last = grid[0, 0], grid[-1, -1]
    if first.get_subplotspec() is not None and first.figure.get_layout_engine() is not None:
        return
    corner = first.get_position(original=True), last.get_position(original=True)
    outer = corner[0].x0, corner[1].y0, corner[1].x1, corner[0].y1
    before = None
    for _ in range(N_ROUNDS):
        beyond = np.array([[_beyond(ax) for ax in row] for row in grid])  # (R, C, 4)
        if before is not None and np.allclose(beyond, before, atol=SETTLED):
            return
        before = beyond
        if grid.size == 1 and _lies_in(beyond[0, 0], first.get_position(), place):
            return
        _place(grid, outer, place, beyond)


def _beyond(ax: Any) -> NDArray[np.floating]:
    """Return how far texts reach beyond axes: to the left, below, to the right and above."""
    tight = ax.get_tightbbox()
    if tight is None:
        return np.zeros(4)
    tight, box = tight.transformed(ax.figure.transSubfigure.inverted()), ax.get_position()
    sides = [box.x0 - tight.x0, box.y0 - tight.y0, tight.x1 - box.x1, tight.y1 - box.y1]
    return np.maximum(sides, 0.0)


def _lies_in(beyond: NDArray[Any], box: Any, place: Any) -> bool:
    low = box.x0 - beyond[0] >= place.x0 and box.y0 - beyond[1] >= place.y0
    return bool(low and box.x1 + beyond[2] <= place.x1 and box.y1 + beyond[3] <= place.y1)


def _place(grid: NDArray[Any], outer: Any, place: Any, beyond: NDArray[Any]) -> None:
    """Give each column and row of a grid what its texts need, and axes the rest in equal parts."""
    left, right = beyond[..., 0].max(axis=0), beyond[..., 2].max(axis=0)
    below, above = beyond[..., 1].max(axis=1), beyond[..., 3].max(axis=1)
    inches = grid[0, 0].figure.bbox.size / grid[0, 0].figure.dpi
    low = max(outer[0], place.x0 + left[0]), max(outer[1], place.y0 + below[-1])
    high = min(outer[2], place.x1 - right[-1]), min(outer[3], place.y1 - above[0])
    least = SHRUNK * np.array([outer[2] - outer[0], outer[3] - outer[1]]) / grid.shape[::-1]
    x = _spans(low[0], high[0], right[:-1] + left[1:] + GAP / inches[0], least[0])
    y = _spans(1.0 - high[1], 1.0 - low[1], below[:-1] + above[1:] + GAP / inches[1], least[1])
    for row, (top, height) in zip(grid, y, strict=True):
        for ax, (start, width) in zip(row, x, strict=True):
            ax.set_position((start, 1.0 - top - height, width, height))
            ax.set_in_layout(True)  # of savefig(bbox_inches="tight")


def _spans(
    start: float, end: float, between: NDArray[Any], least: float
) -> list[tuple[float, float]]:
    """Return where equal parts begin, with what is to lie between them, and how long they are."""
    length = max((end - start - float(between.sum())) / (len(between) + 1), least)
    starts = start + np.concatenate([[0.0], np.cumsum(length + between)])
    return [(float(one), length) for one in starts]
