"""The images that lie in a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_ccl.data.views import file_of

if TYPE_CHECKING:
    from collections.abc import Iterable


def is_image(name: str) -> bool:
    """Tell by its name whether a file is an image.

    Args:
        name: The name of the file.

    Returns:
        Whether it ends like an image, in letters of any case, and is not hidden: macOS leaves a ``._1.png`` beside
        each ``1.png``.

    Example:
        >>> [is_image(name) for name in ("1.PNG", "1.tiff", "._1.png", "Thumbs.db")]
        [True, True, False, False]
    """
    return not name.startswith(".") and name.lower().endswith(tuple(IMG_EXTENSIONS))


def images_in(folder: Path) -> list[Path]:
    """Find the images in a folder and in the folders inside it.

    Links are followed, to files and to folders, and what they lead to is named by its place in the folder, so that
    images that lie in a store somewhere else keep the names that they were given here. anomalib leaves links to
    folders out, and with some data sets links to files.

    Args:
        folder: The folder. Where there is none, there are no images.

    Returns:
        The paths of the images, sorted; also those of links that lead nowhere.
    """
    found = []
    seen: dict[str, set[tuple[int, int]]] = {}
    for place, folders, files in os.walk(folder, followlinks=True):
        stat = Path(place).stat()
        this = (stat.st_dev, stat.st_ino)
        above = seen.get(str(Path(place).parent), set())
        if this in above:  # a link to a folder above it, which would be read for ever
            folders.clear()
            continue
        seen[place] = above | {this}
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        found += [Path(place, name) for name in files if is_image(name)]
    return sorted(found)


def check_files(paths: Iterable[str], what: str) -> None:
    """Check that files are there.

    Args:
        paths: Their paths.
        what: What needs them, for the message.

    Raises:
        ValueError: If one is not there, or is a link to one that is not.
    """
    for path in map(Path, dict.fromkeys(file_of(path)[0] for path in paths)):
        if not path.exists():
            where = f", a link to {path.readlink()}, which is not there" if path.is_symlink() else " is not there"
            way_out = "bring it back or remove it, or skip such images with skip_corrupt=true"
            msg = f"{path}{where}: {what} needs it; {way_out}"
            raise ValueError(msg)
