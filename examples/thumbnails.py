"""Thumbnails of a folder of pictures, and a contact sheet, in a pool of warm processes.

    python examples/thumbnails.py [--backend trio] [SHEET.png]

The pictures are drawn on the spot, in the same pool. Two files are no good: one is cut off, and one
is a decompression bomb, small on disk and too large for memory. Each of them fails alone.
Needs ``pip install creche[examples]``.
"""

from __future__ import annotations

import argparse
import colorsys
import math
import struct
import tempfile
import time
import zlib
from pathlib import Path
from random import Random

import anyio
from PIL import Image, ImageDraw, ImageFont, ImageOps

import creche
from creche.progress import track

MIB = 1024 * 1024
MEMORY_LIMIT = 400 * MIB  # for each worker
PICTURES = 62  # and two that are no good: eight rows of eight
THUMBNAIL = (208, 156)

# Pillow has a check of its own for decompression bombs. Here it is the pool that catches them.
Image.MAX_IMAGE_PIXELS = None


# --- in the workers: the pictures ---------------------------------------------------------------


def draw(number: int, path: Path) -> int:
    """Draw a picture and save it; return the number of its pixels."""
    random = Random(number)
    size = random.choice([(2000, 1500), (2100, 1400), (1700, 1700)])
    motif = MOTIFS[number % len(MOTIFS)]
    picture = motif(random, random.random(), size)
    picture.save(path, quality=90)
    return picture.width * picture.height


def color(hue: float, lightness: float) -> str:
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.6)
    return f"#{int(255 * red):02x}{int(255 * green):02x}{int(255 * blue):02x}"


def gradient(random: Random, hue: float, size: tuple[int, int]) -> Image.Image:
    shape = random.choice([Image.linear_gradient, Image.radial_gradient])
    return ImageOps.colorize(shape("L").resize(size), color(hue, 0.35), color(hue + 0.12, 0.8))


def landscape(random: Random, hue: float, size: tuple[int, int]) -> Image.Image:
    picture = gradient(random, hue, size)
    pencil = ImageDraw.Draw(picture)
    width, height = size
    pencil.circle((random.uniform(0.2, 0.8) * width, 0.3 * height), height / 9, "#fff4d0")
    for layer in range(1, 6):
        waves = [(random.uniform(2, 9), random.uniform(0, 6)) for _ in range(3)]
        base = height * (0.4 + 0.11 * layer)
        hills = [
            (x, base + 0.03 * height * sum(math.sin(a * x / width + b) for a, b in waves))
            for x in range(0, width + 10, 10)
        ]
        shade = color(hue + 0.03 * layer, 0.55 - 0.09 * layer)
        pencil.polygon([*hills, (width, height), (0, height)], shade)
    return picture


def mandelbrot(random: Random, hue: float, size: tuple[int, int]) -> Image.Image:
    x, y, width = random.choice(PLACES)
    width *= random.uniform(0.5, 1)
    height = width * size[1] / size[0]
    extent = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    speed = Image.effect_mandelbrot((size[0] // 2, size[1] // 2), extent, 120).resize(size)
    shades = color(hue, 0.07), color(hue + 0.2, 0.9), color(hue + 0.1, 0.45)
    return ImageOps.colorize(ImageOps.equalize(speed), *shades)


PLACES = [
    (-0.7, 0.0, 4.5),
    (-0.745, 0.11, 0.04),
    (-1.25, 0.1, 0.3),
    (-0.16, 1.035, 0.08),
    (0.3, 0.025, 0.05),
    (-0.235, 0.827, 0.06),
]


def bubbles(random: Random, hue: float, size: tuple[int, int]) -> Image.Image:
    picture = gradient(random, hue, size)
    pencil = ImageDraw.Draw(picture, "RGBA")
    for _ in range(50):
        place = random.uniform(0, size[0]), random.uniform(0, size[1])
        shade = color(hue + random.uniform(-0.2, 0.2), 0.6) + "70"
        pencil.circle(place, random.uniform(30, 260), shade, "#ffffffa0", 6)
    return picture


def poster(random: Random, hue: float, size: tuple[int, int]) -> Image.Image:
    picture = gradient(random, hue, size)
    pencil = ImageDraw.Draw(picture)
    word = random.choice(["await", "async", "creche", "spawn", "join", "yield", "map"])
    font = ImageFont.load_default(size[1] / 3.5)
    x, y = size[0] / 2, size[1] / 2
    pencil.text((x + 16, y + 16), word, color(hue, 0.15), font, anchor="mm")
    pencil.text((x, y), word, color(hue, 0.95), font, anchor="mm")
    return picture


MOTIFS = [landscape, mandelbrot, bubbles, poster]


def write_bomb(path: Path) -> None:
    """Write a PNG file of 30,000 times 30,000 black pixels, which compress well."""
    side = 30_000
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + side // 8) * side))
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in chunks:
            checksum = struct.pack(">I", zlib.crc32(name + data))
            file.write(struct.pack(">I", len(data)) + name + data + checksum)


# --- in the workers: what the pool is for -------------------------------------------------------


def make_thumbnail(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return ImageOps.fit(picture.convert("RGB"), THUMBNAIL)


def make_sheet(thumbnails: list[Image.Image | str], sheet: Path) -> None:
    """Put thumbnails side by side, and what became of those that there are not."""
    columns, gap = 8, 12
    width, height = THUMBNAIL
    step_x, step_y = width + gap, height + gap
    rows = math.ceil(len(thumbnails) / columns)
    paper = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), "#16181d")
    pencil = ImageDraw.Draw(paper)
    for i, thumbnail in enumerate(thumbnails):
        left, top = gap + i % columns * step_x, gap + i // columns * step_y
        if isinstance(thumbnail, str):
            pencil.rectangle((left, top, left + width - 1, top + height - 1), "#2a2226")
            middle = (left + width / 2, top + height / 2)
            pencil.text(middle, thumbnail, "#e0605a", ImageFont.load_default(20), anchor="mm")
        else:
            paper.paste(thumbnail, (left, top))
    paper.save(sheet)


# --- in the parent ------------------------------------------------------------------------------


async def draw_pictures(pool: creche.ProcessPool, folder: Path) -> list[Path]:
    began = time.monotonic()
    paths = [folder / f"picture-{number}.jpg" for number in range(PICTURES)]
    pixels = 0
    async for drawn in track(pool.map(draw, range(PICTURES), paths), description="drawing"):
        pixels += drawn
    seconds = time.monotonic() - began
    print(f"drew {PICTURES} pictures of {pixels / 1e6:.0f} megapixels in {seconds:.1f} s")

    cut_off, bomb = folder / "cut-off.jpg", folder / "bomb.png"
    cut_off.write_bytes(paths[0].read_bytes()[:50_000])
    await pool.run(write_bomb, bomb)
    return [*paths[:20], cut_off, *paths[20:45], bomb, *paths[45:]]


async def make_thumbnails(pool: creche.ProcessPool, paths: list[Path]) -> list[Image.Image | str]:
    began = time.monotonic()
    thumbnails: list[Image.Image | str] = []
    outcomes = pool.map(make_thumbnail, paths, on_error="yield")
    async for outcome in track(outcomes, description="resizing"):
        if outcome.exception is None:
            thumbnails.append(outcome.value)
        else:
            error = type(outcome.exception).__name__
            thumbnails.append(error)
            print(f"{paths[outcome.index].name}: {error}: {outcome.exception}")
    made = sum(isinstance(thumbnail, Image.Image) for thumbnail in thumbnails)
    seconds = time.monotonic() - began
    print(f"made {made} thumbnails of {len(paths)} files in {seconds:.1f} s")
    return thumbnails


async def main(sheet: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with creche.open_pool(memory_limit=MEMORY_LIMIT) as pool:
            paths = await draw_pictures(pool, Path(folder))
            thumbnails = await make_thumbnails(pool, paths)
            await pool.run(make_sheet, thumbnails, sheet)
    print(f"the contact sheet is {sheet}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make thumbnails in a pool of processes.")
    parser.add_argument("sheet", nargs="?", type=Path)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    options = parser.parse_args()
    sheet = options.sheet or Path(tempfile.mkdtemp(prefix="creche-"), "contact-sheet.png")
    anyio.run(main, sheet, backend=options.backend)
