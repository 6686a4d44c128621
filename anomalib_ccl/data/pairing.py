"""Which mask belongs to which image, by their names; the position in a list never counts.

A mask has the name of its image, alone or with something before or after it: ``10.png`` or ``10_mask.png`` for
``10.jpg``. Or it lies, perhaps with others, in a folder of that name: ``10/000.png``. Suffixes do not matter, nor does
the case of letters, unless two images differ in nothing else. Where images in several folders have one name, the folder
of the mask decides.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from anomalib_ccl.errors import InputError

# Runs of letters and runs of digits: a name may begin or end where one of these does.
_WORDS = re.compile(r"[^\W\d_]+|\d+|[\W_]")


def pair_masks(images: Mapping[Path, Path], masks: Mapping[Path, Path], where: Path) -> dict[Path, list[Path]]:
    """Find the masks of images; both mappings have for each path that relative to its folder."""
    names = _Names(images)
    found: dict[Path, list[Path]] = defaultdict(list)
    in_folder_of_its_own = set()
    for mask, relative in masks.items():
        own = [] if names.named(relative.with_suffix("")) else names.named(relative.parent)
        if own:
            in_folder_of_its_own.add(mask)
        else:
            own = names.within(relative)
        if not own:
            rule = "a mask has the name of its image, as in 10.png or 10_mask.png for 10.jpg"
            raise InputError(f"mask {mask} fits no image in {where}: {rule}; rename or remove it")
        if len(own) > 1:
            raise InputError(f"mask {mask} fits {own[0]} and {own[1]}; rename it after one of them")
        found[own[0]].append(mask)
    for image, several in found.items():
        if len(several) > 1 and not in_folder_of_its_own.issuperset(several):
            way_out = f"keep one, or lay them in a folder named {image.stem}"
            raise InputError(f"image {image} has the masks {several[0]} and {several[1]}; {way_out}")
    return dict(found)


class _Names:
    """Images by what a mask may call them."""

    def __init__(self, images: Mapping[Path, Path]) -> None:
        self._relative = images
        self._by_path: dict[str, list[Path]] = defaultdict(list)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for image, relative in images.items():
            self._by_path[_plain(relative.with_suffix("").as_posix())].append(image)
            for name in (relative.stem, relative.name):  # with its suffix too, for 10.jpg.png
                self._by_name[_plain(name)].append(image)

    def named(self, path: Path) -> list[Path]:
        """The images that have a path but for their suffix."""
        images = self._by_path.get(_plain(path.as_posix()), [])
        return [image for image in images if self._relative[image].with_suffix("") == path] or images

    def within(self, mask: Path) -> list[Path]:
        """The images with the longest name that stands in the name of a mask, of several those in its folder."""
        words = _WORDS.findall(unicodedata.normalize("NFC", mask.stem))
        for length in range(len(words), 0, -1):
            parts = ["".join(words[start : start + length]) for start in range(len(words) - length + 1)]
            # Best at the beginning: 10_mask_2.png is of 10, also where there is an image 2.
            first = self._by_name.get(_plain(parts[0]), [])
            # A number is not that of an image if another one begins the name.
            others = [part for part in parts[1:] if not (part.isdigit() and words[0].isdigit())]
            images = first or [image for part in others for image in self._by_name.get(_plain(part), [])]
            if images:
                same_letters = [image for image in images if {image.stem, image.name}.intersection(parts)]
                images = same_letters or images
                alike = [image for image in images if _end_alike(self._relative[image].parent, mask.parent)]
                return [image for image in alike if self._relative[image].parent == mask.parent] or alike
        return []


def _end_alike(one: Path, other: Path) -> bool:
    """Whether two folders can be of one kind of image: the longer path ends like the shorter one."""
    length = min(len(one.parts), len(other.parts))
    return length == 0 or one.parts[-length:] == other.parts[-length:]


def _plain(name: str) -> str:
    """The name in small letters, and in one of the two ways in which systems write an umlaut."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
