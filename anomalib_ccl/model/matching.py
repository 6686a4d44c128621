"""Where a position of one feature map is found in another."""

import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_ccl.model.precision import upcast

# How many similarities exist at one time: few enough for the memory that it saves (16 MiB), enough for full speed.
_CHUNK_SIMILARITIES = 2**22


@torch.no_grad()
def match_positions(query: Tensor, key: Tensor, key_of_query: Tensor | None = None) -> Tensor:
    """Find, for each position of one map, the position of another whose feature is nearest in cosine.

    Args:
        query: Feature maps of shape ``(B, C, h, w)``.
        key: Feature maps of shape ``(N, C, H, W)``.
        key_of_query: Which map of ``key`` each of ``query`` is matched with, of shape ``(B,)``; without it the i-th
            with the i-th.

    Returns:
        Flat positions in the map of ``key``, in ``[0, H W)``, of shape ``(B, h w)``.

    Example:
        >>> maps = torch.eye(4).reshape(1, 4, 2, 2)
        >>> match_positions(maps, maps.flip(-1))
        tensor([[1, 0, 3, 2]])
    """
    batch, asked, positions = len(query), query.shape[2:].numel(), key.shape[2:].numel()
    keys = torch.arange(batch, device=query.device) if key_of_query is None else key_of_query
    matches = torch.empty(batch, asked, dtype=torch.long, device=query.device)
    # Several maps at once where they are small, a part of one where they are large.
    images = max(1, _CHUNK_SIMILARITIES // (asked * positions))
    rows = min(asked, max(1, _CHUNK_SIMILARITIES // positions))
    # One buffer for all chunks: allocating each anew leaves a heap that grows to the size of the whole matrix.
    buffer = query.new_empty(min(images, batch), rows, positions, dtype=torch.promote_types(query.dtype, torch.float32))
    for first in range(0, batch, images):
        group = slice(first, first + images)
        # The query's own length does not change which key is nearest.
        candidates = F.normalize(upcast(key[keys[group]]).flatten(2), dim=1)
        asking = upcast(query[group]).flatten(2).transpose(1, 2)
        for start in range(0, asked, rows):
            chunk = slice(start, start + rows)
            similarity = buffer[: len(asking), : min(rows, asked - start)]
            torch.bmm(asking[:, chunk], candidates, out=similarity)
            matches[group, chunk] = similarity.argmax(dim=2)
    return matches
