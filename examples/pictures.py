"""What the workers of ``web_service.py`` do: thumbnails of a picture, and its perceptual hash.

Nothing in here knows of HTTP, and the service opens no picture itself: whatever a file does to the
library that reads it, it does in a worker.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

SIZES = (64, 256)  # of the longer side of a thumbnail, in pixels
MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")  # Pillow reads many more, some by calling programs


class BadPicture(Exception):
    """The upload is not a picture, or not a whole one, or one that is too large."""


def prepare(niceness: int) -> None:
    """Make a worker ready, before its first call.

    :param niceness: by how much its priority is lower than that of the service. While all workers
        compute, the service still answers at once
    """
    if niceness and hasattr(os, "nice"):
        os.nice(niceness)
    # The header of a picture says how large it is, so a decompression bomb need not be opened.
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def describe(upload: bytes) -> bytes:
    """Return what the service answers, ready to be sent: JSON with a hash and thumbnails.

    :raises BadPicture: if the upload is no good
    :raises MemoryError: if there is not enough memory to open it; the pool's ``memory_limit`` sees
        to that
    """
    try:
        with Image.open(io.BytesIO(upload), formats=FORMATS) as picture:
            kind, (width, height) = picture.format, picture.size
            picture.draft("RGB", (2 * max(SIZES), 2 * max(SIZES)))  # JPEG: decode no more than that
            image = ImageOps.exif_transpose(picture).convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise BadPicture(f"not a picture in one of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # broken files raise all sorts of things
        raise BadPicture(f"this picture is no good: {error}") from None
    thumbnails = {}
    for size in sorted(SIZES, reverse=True):
        image.thumbnail((size, size))
        with contextlib.closing(io.BytesIO()) as file:
            image.save(file, "JPEG", quality=85)
            data = base64.b64encode(file.getvalue()).decode()
        thumbnails[size] = f"data:image/jpeg;base64,{data}"
    answer = {
        "format": kind,
        "width": width,
        "height": height,
        "hash": f"{perceptual_hash(image):016x}",
        "thumbnails": thumbnails,
    }
    return json.dumps(answer).encode()


def perceptual_hash(image: Image.Image) -> int:
    """Return 64 bits, of which few differ between pictures that look alike.

    They tell which of the 64 lowest frequencies of the picture are above the median.
    """
    pixels = image.convert("L").resize((32, 32)).tobytes()
    rows = [pixels[i : i + 32] for i in range(0, 32 * 32, 32)]
    across = [[dot(row, wave) for wave in WAVES] for row in rows]
    columns = list(zip(*across, strict=True))
    spectrum = [dot(column, wave) for wave in WAVES for column in columns]
    median = sorted(spectrum)[len(spectrum) // 2]
    return sum(1 << i for i, value in enumerate(spectrum) if value > median)


def dot(left: bytes | tuple[float, ...], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


WAVES = [[math.cos(math.pi * k * (2 * i + 1) / 64) for i in range(32)] for k in range(8)]
