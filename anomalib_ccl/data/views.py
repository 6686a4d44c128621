"""Files that hold several views of one object side by side, and how one view of them is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Views in a file of MANTA, the only data set that has such files.
VIEWS = 5

_NUMBERS = {f"view{number}.png": number for number in range(1, VIEWS + 1)}


def view_paths(path: str | Path) -> list[str]:
    """Name the views of a file, from left to right.

    Each view is an image of its own, and every image is known by a path. That of a view is the path of the file as if
    it were a folder, with the view in it. Nothing is written there: the files of MANTA, cut up, would be 690,000.

    Args:
        path: The file.

    Returns:
        Five paths.

    Example:
        >>> view_paths("maize/train/good/001.png")[0]
        'maize/train/good/001.png/view1.png'
    """
    return [f"{path}/{name}" for name in _NUMBERS]


def file_of(path: str | Path) -> tuple[str, int | None]:
    """Find the file that an image is read from.

    Args:
        path: An image, which may be a view.

    Returns:
        The path of the file, and the number of the view in it, 1 to 5 from left to right; None for a whole file.

    Example:
        >>> file_of("no_such_folder/001.png/view1.png")
        ('no_such_folder/001.png/view1.png', None)
    """
    path = str(path)
    number = _NUMBERS.get(path[-len("view1.png") :])
    if number is not None:
        file = Path(path).parent
        if file.is_file():
            return str(file), number
    return path, None


def cut(pixels: NDArray, number: int | None) -> NDArray:
    """Cut a view out of the pixels of its file.

    Args:
        pixels: Pixels of shape ``(H, 5 W, …)``.
        number: Number of the view, 1 to 5 from left to right; None for all of them.

    Returns:
        Those of the view, of shape ``(H, W, …)``.

    Raises:
        ValueError: If the file is not as wide as five equal views.
    """
    if number is None:
        return pixels
    width, rest = divmod(pixels.shape[1], VIEWS)
    if rest or not width:
        msg = f"its width of {pixels.shape[1]} pixels cannot be split into {VIEWS} equal views"
        raise ValueError(msg)
    return pixels[:, (number - 1) * width : number * width]
