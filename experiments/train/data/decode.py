"""Decodes JPEG and PNG files into bytes of one shape, with Pillow; also the program that a decoding process runs.

What an image becomes, whatever its file holds:
- greyscale of 1, 8 or 16 bits (the high byte): (h, w, 1); repeated over three channels where the data set has colours;
- colour, also by palette, CMYK and with 16 bits a channel: (h, w, 3);
- transparency: over white;
- a photograph that says how the camera was held (EXIF orientation): upright;
- where a size is asked for: scaled until it covers that size, aspect kept, and its middle cut out.

A file that is not a whole JPEG or PNG raises Unreadable with the reason: empty, truncated, foreign, a checksum of PNG
that is wrong, or more pixels than LIMIT (a few kilobytes of PNG may stand for gigabytes). JPEG has no checksums: damage
that leaves it decodable is not seen.

As a program it answers requests, one JSON line each, on standard input, with a JSON line and the images' bytes. It
imports nothing of this project, so that a process starts in the time of NumPy and Pillow: see folders.py.
"""

import contextlib
import io
import json
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

LIMIT = 89_478_485  # pixels, Pillow's own: a quarter of a gigabyte of RGB
FORMATS = ("JPEG", "PNG")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L")


class Unreadable(ValueError):
    """A file that is no image of these formats, or only a part of one; says why."""


@contextlib.contextmanager
def careful() -> Iterator[None]:
    """Pillow refuses truncated files and decompression bombs meanwhile, whatever else set it to; the whole process."""
    truncated, limit = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, LIMIT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow finds odd about a file that it can decode
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = truncated, limit


def decode(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """One file as uint8 (h, w, 1) where it is greyscale, else (h, w, 3); call it inside careful().

    Args:
      path: a JPEG or PNG file; its contents count, not its name.
      size: (h, w) to scale and cut to; None: as it is.

    Raises:
      Unreadable: with the reason.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    if not data:
        raise Unreadable("empty")
    try:
        if data.startswith(PNG_SIGNATURE):
            _verify_png(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if size:
                image.draft(None, (max(size), max(size)))  # JPEG: decoded at 1/2, 1/4 or 1/8 where that is enough
            ImageOps.exif_transpose(image, in_place=True)
            return _pixels(image, size)
    except UnidentifiedImageError:
        raise Unreadable("neither a JPEG nor a PNG file") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unreadable(f"more than {LIMIT:,} pixels") from None
    except Unreadable:
        raise
    except Exception as error:  # Pillow raises what the format's code ran into: OSError, SyntaxError, struct.error ...
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error


def _verify_png(data: bytes) -> None:
    """Every chunk's checksum, and that the last one is there: Image.load stops once it has all the pixels."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.verify()
    if PNG_END not in data:
        raise Unreadable("truncated PNG file (no end)")


def _pixels(image: Image.Image, size: tuple[int, int] | None) -> np.ndarray:
    grey = image.mode in GREY
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise Unreadable(f"pixels of mode {image.mode}: 8 or 16 bits expected")
    image = image.convert("L" if grey else "RGB")
    return resized(image, size) if size else np.asarray(image).reshape(image.height, image.width, -1)


def resized(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Scaled until it covers size, (h, w), and its middle cut out: (h, w, channels)."""
    if image.size != (size[1], size[0]):
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(*size, -1)


def decode_all(paths: list[str], shape: tuple[int, ...], resize: bool) -> tuple[list[Any], np.ndarray]:
    """The images of several files, those of shape; for each file what it was.

    Args:
      paths: the files.
      shape: (h, w, channels) that every image has to have; greyscale goes into three channels too.
      resize: scaled and cut to that (h, w).

    Returns:
      For each file True if its image is among the second result, a string if it is unreadable, its shape where that
      is another; and the images, uint8 (images, h, w, channels).
    """
    shape = tuple(shape)
    outcomes, images = [], []
    with careful():
        for path in paths:
            try:
                image = decode(path, (shape[0], shape[1]) if resize else None)
            except Unreadable as error:
                outcomes.append(str(error))
                continue
            if image.shape == (*shape[:2], 1):
                image = np.broadcast_to(image, shape)
            outcomes.append(True if image.shape == shape else list(image.shape))
            if image.shape == shape:
                images.append(image)
    return outcomes, np.stack(images) if images else np.zeros((0, *shape), np.uint8)


def main() -> None:
    """Answers each line of standard input, the arguments of decode_all in JSON, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that asks, and with it the input
    for line in sys.stdin:
        outcomes, images = decode_all(**json.loads(line))
        sys.stdout.buffer.write(json.dumps(outcomes).encode() + b"\n" + images.tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
