"""Images larger than a network, cut into overlapping tiles of the size that it sees."""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from anomalib_ccl.errors import InputError

# Neighbours share a quarter of a tile: at its border, a network sees the padding of its convolutions.
_SHARED = 4
# PIL refuses to read files of more.
_MOST_PIXELS = 178_956_970


class Tiling:
    """A grid of tiles, of which neighbours overlap by a quarter of a tile.

    A side of n tiles of length t is ``t + (n - 1) · (t - t // 4)`` pixels long: 2 × 3 tiles of 256 × 256 pixels make an
    image of 448 × 640. One tile is the image itself.

    anomalib's ``Tiler`` and kornia's ``extract_tensor_patches`` copy all tiles of a batch at once. Both merge maps by
    their mean, which leaves a step where a tile ends.

    Args:
        tiles: The numbers of rows and of columns.

    Attributes:
        tiles: The same, as a tuple.
        count: Their product.

    Raises:
        InputError: If they are not two whole numbers from 1 on.

    Example:
        >>> tiling = Tiling((2, 3))
        >>> images = torch.rand(4, 1, *tiling.image_size((16, 32)))
        >>> tiles = tiling.cut(images)
        >>> images.shape, len(tiles), tiles[0].shape
        (torch.Size([4, 1, 28, 80]), 6, torch.Size([4, 1, 16, 32]))
        >>> torch.equal(tiling.merge(tiles), images)
        True
    """

    def __init__(self, tiles: Sequence[int] = (1, 1)) -> None:
        if not isinstance(tiles, Sequence) or [type(n) for n in tiles] != [int, int] or min(tiles) < 1:
            msg = f"tiles must be two whole numbers from 1 on, the rows and the columns, got {tiles!r}"
            raise InputError(msg)
        self.tiles = (tiles[0], tiles[1])
        self.count = tiles[0] * tiles[1]

    def image_size(self, tile: tuple[int, int]) -> tuple[int, int]:
        """Tell which images the grid covers.

        Args:
            tile: Height and width of a tile, in pixels.

        Returns:
            Height and width of the image, in pixels.

        Raises:
            InputError: If no file has so many pixels.

        Example:
            >>> Tiling((1000, 1000)).image_size((256, 256))
            Traceback (most recent call last):
            ...
            anomalib_ccl.errors.InputError: tiles=(1000, 1000) of 256 × 256 pixels make images of 192064 × 192064, ...
        """
        height, width = (length + (n - 1) * _step(length) for length, n in zip(tile, self.tiles, strict=True))
        if self.count > 1 and height * width > _MOST_PIXELS:
            msg = (
                f"tiles={self.tiles} of {tile[0]} × {tile[1]} pixels make images of {height} × {width}, more than any "
                "file that can be read has; give fewer tiles"
            )
            raise InputError(msg)
        return height, width

    def tile_size(self, image: tuple[int, int]) -> tuple[int, int]:
        """Tell which tiles an image is cut into.

        Args:
            image: Height and width of the image, in pixels.

        Returns:
            Height and width of a tile, in pixels.

        Raises:
            InputError: If no tiles of one size cover exactly such an image.

        Example:
            >>> Tiling((2, 3)).tile_size((448, 640))
            (256, 256)
            >>> Tiling((2, 3)).tile_size((449, 640))
            Traceback (most recent call last):
            ...
            anomalib_ccl.errors.InputError: images of 449 × 640 pixels cannot be cut into tiles=(2, 3), each ...
        """
        if self.count == 1:
            return image
        height, width = (_SHARED * length // (3 * n + 1) for length, n in zip(image, self.tiles, strict=True))
        if self.image_size((height, width)) != tuple(image):
            msg = (
                f"images of {image[0]} × {image[1]} pixels cannot be cut into tiles={self.tiles}, each overlapping the "
                "next by a quarter; let the model's own pre-processor resize them"
            )
            raise InputError(msg)
        return height, width

    def cut(self, images: Tensor) -> list[Tensor]:
        """Cut images into tiles, without copying them.

        Args:
            images: Images or maps of shape ``(B, C, H, W)``.

        Returns:
            One batch of shape ``(B, C, h, w)`` for each place in the grid, row by row.

        Raises:
            InputError: If no tiles of one size cover exactly such images.
        """
        if self.count == 1:
            return [images]
        height, width = self.tile_size((images.shape[-2], images.shape[-1]))
        rows, columns = (range(n) for n in self.tiles)
        corners = [(row * _step(height), column * _step(width)) for row in rows for column in columns]
        return [images[..., top : top + height, left : left + width] for top, left in corners]

    def merge(self, maps: Sequence[Tensor]) -> Tensor:
        """Put the maps of tiles together; where two overlap, the one fades into the other.

        Args:
            maps: Maps of shape ``(B, C, h, w)`` for each place in the grid, in the order of :meth:`cut`.

        Returns:
            Maps of shape ``(B, C, H, W)``.
        """
        if self.count == 1:
            return maps[0]
        rows, columns = self.tiles
        joined = [_joined(maps[row * columns : (row + 1) * columns], dim=-1) for row in range(rows)]
        return _joined(joined, dim=-2)

    def names(self, names: Sequence[str], place: int) -> Sequence[str]:
        """Tell what the tiles at a place of the grid are known by, if images are known by ``names``."""
        return names if self.count == 1 else [_name(name, place) for name in names]

    def draw(self, images: Tensor, names: Sequence[str]) -> tuple[Tensor, Sequence[str]]:
        """Take one tile of each image, drawn at random, so that a batch of tiles costs what one of images does.

        Args:
            images: Images of shape ``(B, C, H, W)``.
            names: What each is known by.

        Returns:
            Tiles of shape ``(B, C, h, w)``, and what each of them is known by.
        """
        if self.count == 1:
            return images, names
        places = torch.randint(self.count, (len(images),)).tolist()
        tiles = self.cut(images)
        drawn = torch.stack([tiles[place][index] for index, place in enumerate(places)])
        return drawn, [*map(_name, names, places)]

    def score(self, score: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
        """Score maps as the worst of their tiles: a network's mean over all of it would hide a small defect.

        Args:
            score: Gives scores of shape ``(B, 1)`` of the maps of tiles.
            maps: Maps of shape ``(B, 1, H, W)``.

        Returns:
            Scores of shape ``(B, 1)``.
        """
        if self.count == 1:
            return score(maps)
        return score(torch.cat(self.cut(maps))).unflatten(0, (self.count, -1)).amax(dim=0)


def _name(image: str, place: int) -> str:
    return f"{image} {place}"


def check_divisible(images: Tensor, stride: int, tiling: Tiling) -> None:
    """Refuse images, or tiles, whose sides are no multiples of a network's stride."""
    height, width = images.shape[-2:]
    if height % stride or width % stride:
        what = "images" if tiling.count == 1 else "tiles"
        msg = (
            f"{what} of {height} × {width} pixels do not fit the network: height and width must be multiples of "
            f"{stride}. Let the pre-processor resize them."
        )
        raise InputError(msg)


def _step(length: int) -> int:
    return length - length // _SHARED


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    length = parts[0].shape[dim]
    shared, own = length - _step(length), _step(length)
    weights = (torch.arange(shared, device=parts[0].device, dtype=parts[0].dtype) + 0.5) / shared
    fade = weights if dim == -1 else weights[:, None]

    def join(before: Tensor, after: Tensor) -> Tensor:
        begin, end = before.split([before.shape[dim] - shared, shared], dim)
        again, rest = after.split([shared, own], dim)
        return torch.cat([begin, torch.lerp(end, again, fade), rest], dim)

    return reduce(join, parts)
