"""Seeds of images: noise that belongs to an image, and not to its place in a batch."""

from collections.abc import Iterator
from hashlib import blake2b

import torch
from torch import Tensor


def image_generators(seed: int, images: Tensor) -> Iterator[torch.Generator]:
    """Yield a generator on the CPU for each image, seeded with `seed` and its pixels in float32."""
    for pixels in images.detach().float().cpu().numpy():
        digest = blake2b(pixels.tobytes(), digest_size=8, salt=seed.to_bytes(8, "little", signed=True))
        yield torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)
