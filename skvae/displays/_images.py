"""Rows that are images: their shape, and tiles with gaps between them."""

from typing import Any

import numpy as np

from .._table.column import Array

GAP = 0.08  # of a tile


def check_image_shape(shape: Any, vae: Any) -> None:
    """Raise a ValueError unless a row of numbers can have this shape."""
    n_features = vae.n_features_in_
    whole = isinstance(shape, tuple | list) and all(isinstance(n, int) and n > 0 for n in shape)
    if not whole or len(shape) not in (2, 3) or int(np.prod(shape)) != n_features:
        raise ValueError(
            "image_shape must be height and width, and 3 or 4 for colours, whose product is the "
            f"number of columns, {n_features}. Got {shape!r}."
        )
    if len(shape) == 3 and shape[2] not in (3, 4):
        raise ValueError(f"An image has 3 or 4 colours. Got image_shape={shape!r}.")
    if any(column.n_levels for column in vae.model_.schema.columns):
        raise ValueError("image_shape is for rows of numbers, but X has columns of categories.")


def draw_tiles(ax: Any, tiles: Array, kwargs: dict[str, Any]) -> Any:
    """Draw tiles (R, C, H, W) or (R, C, H, W, colours), each a unit wide, with gaps between them.

    The centre of the tile in row r and column c is (c, r), and the first row is on top.
    """
    from matplotlib import colormaps

    n_rows, n_columns, height, width, *_ = tiles.shape
    gap = max(1, round(GAP * width))
    finite = tiles[np.isfinite(tiles)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    picture = np.full(
        (n_rows * (height + gap) + gap, n_columns * (width + gap) + gap, *tiles.shape[4:]), np.nan
    )
    for row in range(n_rows):
        for column in range(n_columns):
            top, left = gap + row * (height + gap), gap + column * (width + gap)
            picture[top : top + height, left : left + width] = tiles[row, column]
    settings: dict[str, Any] = {"interpolation": "nearest", "vmin": low, "vmax": high} | kwargs
    if picture.ndim == 3:
        picture = _in_colours(picture, settings)
    else:
        cmap = settings.get("cmap", "gray")
        settings["cmap"] = (colormaps[cmap] if isinstance(cmap, str) else cmap).with_extremes(
            bad=(1.0, 1.0, 1.0, 0.0)
        )
    x, y = gap / (width + gap), gap / (height + gap)
    extent = (-0.5 - 0.5 * x, n_columns - 0.5 + 0.5 * x, n_rows - 0.5 + 0.5 * y, -0.5 - 0.5 * y)
    settings |= {"extent": extent, "aspect": settings.get("aspect", height / width)}
    image = ax.imshow(picture, **settings)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.tick_params(length=0)
    return image


def _in_colours(picture: Array, settings: dict[str, Any]) -> Array:
    """Return colours between 0 and 1; the gaps are white."""
    low, high = settings.pop("vmin"), settings.pop("vmax")
    scaled = np.clip((picture - low) / max(high - low, 1e-12), 0.0, 1.0)
    return np.where(np.isnan(picture), 1.0, scaled)
