"""Images that are there several times: with the same pixels, or nearly so."""

import hashlib

import numpy as np
from transformers.utils.logging import tqdm


def hash_of(values: np.ndarray) -> bytes:
    """What equal pixels have in common: of the values (channels, height, width), their type and shape."""
    digest = hashlib.blake2b(f"{values.dtype} {values.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(values).data)
    return digest.digest()


def perceptual_hash(values: np.ndarray) -> int:
    """64 bits of which images that look alike have most in common (`imagehash.phash`), of the mean of the channels,
    between the least and the greatest value of 8 bits."""
    import imagehash
    from PIL import Image

    grey = np.nan_to_num(values.astype(np.float64).mean(0), posinf=0.0, neginf=0.0)
    if values.dtype != np.uint8:
        low, high = grey.min(), grey.max()
        grey = (grey - low) * (255 / (high - low) if high > low else 0)
    found = imagehash.phash(Image.fromarray(np.rint(grey).astype(np.uint8)))
    return int.from_bytes(np.packbits(found.hash.ravel()).tobytes(), "big")


def groups_of(hashes: list[bytes], perceptual: list[int] | None = None, distance: int = 0) -> np.ndarray:
    """Which image each is a duplicate of: (images,) int64, the number of the first one that it equals or, with
    perceptual hashes, of the first that is no duplicate itself and differs in at most `distance` bits; its own
    number, if there is none."""
    firsts: dict[bytes, int] = {}
    found = np.array([firsts.setdefault(value, number) for number, value in enumerate(hashes)], dtype=np.int64)
    if perceptual is None:
        return found
    codes = np.array(perceptual, dtype=np.uint64)
    kept, numbers, count = np.empty_like(codes), np.empty(len(codes), dtype=np.int64), 0
    for number in tqdm(range(len(codes)), desc="near-duplicates", unit=" images", delay=3):
        if found[number] != number:
            continue
        near = np.flatnonzero(np.bitwise_count(kept[:count] ^ codes[number]) <= distance)
        if len(near):
            found[number] = numbers[near[0]]
        else:
            kept[count], numbers[count], count = codes[number], number, count + 1
    for number in range(len(codes)):  # what equals a near-duplicate is one of the same image
        found[number] = found[found[number]]
    return found
