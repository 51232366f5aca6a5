"""One image file: what its pixels become, and which files are refused, with which reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from experiments.train.data import decode
from tests.experiments.train.data.files import encoded, picture

COLOUR, GREY = picture(0, (6, 5, 3)), picture(1, (6, 5))


def decoded(tmp_path, data, size=None):
    (tmp_path / "file").write_bytes(data)
    with decode.careful():
        return decode.decode(tmp_path / "file", size)


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _with_alpha(pixels, alpha):
    return np.concatenate([pixels, np.full((*pixels.shape[:2], 1), alpha, np.uint8)], -1)


HALF = _with_alpha(COLOUR, 128)
WIDE = GREY.astype(np.uint16) * 256 + 77
CASES = {
    "colour": (encoded(COLOUR), COLOUR),
    "greyscale": (encoded(GREY), GREY[..., None]),
    "one bit": (encoded(GREY > 99), 255 * (GREY > 99)[..., None].astype(np.uint8)),
    "sixteen bits": (encoded(WIDE), GREY[..., None]),
    "opaque": (encoded(_with_alpha(COLOUR, 255)), COLOUR),
    "transparent": (encoded(_with_alpha(COLOUR, 0)), np.full_like(COLOUR, 255)),
    "half transparent": (encoded(HALF), np.round(COLOUR * (128 / 255) + 127).astype(np.uint8)),
    "greyscale with transparency": (encoded(np.stack([GREY, GREY * 0], -1)), np.full((6, 5, 1), 255, np.uint8)),
    "palette": (saved(Image.fromarray(COLOUR // 64 * 64).quantize(256)), None),
    "JPEG": (encoded(np.full((6, 5, 3), 200, np.uint8), "JPEG"), np.full((6, 5, 3), 200, np.uint8)),
    "greyscale JPEG": (encoded(np.full((6, 5), 90, np.uint8), "JPEG"), np.full((6, 5, 1), 90, np.uint8)),
    "CMYK": (saved(Image.new("CMYK", (5, 6), (0, 0, 0, 0)), "JPEG"), np.full((6, 5, 3), 255, np.uint8)),
}


@pytest.mark.parametrize("case", CASES)
def test_pixels(tmp_path, case):
    data, want = CASES[case]
    got = decoded(tmp_path, data)
    if want is None:  # a palette: colours are near those it was made of
        assert got.shape == COLOUR.shape
        assert abs(got.astype(int) - COLOUR // 64 * 64).max() <= 2
    else:
        np.testing.assert_allclose(got, want, atol=1 if "half" in case else 0)
        assert got.dtype == np.uint8
        assert got.shape == want.shape


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    got = decoded(tmp_path, encoded(COLOUR, exif=exif.tobytes()))
    np.testing.assert_array_equal(got, np.rot90(COLOUR, -1))


@pytest.mark.parametrize("shape", [(40, 20), (20, 40)], ids=str)
def test_resizing_keeps_the_aspect_and_cuts_out_the_middle(tmp_path, shape):
    bars = np.zeros(shape, np.uint8)
    middle = tuple(slice((side - 20) // 2, (side + 20) // 2) for side in shape)
    bars[middle] = 255
    assert (decoded(tmp_path, encoded(bars), (10, 10)) == 255).mean() > 0.75  # but for the blur at the edges
    assert decoded(tmp_path, encoded(bars), (7, 9)).shape == (7, 9, 1)
    assert decoded(tmp_path, encoded(np.stack(3 * [bars], -1), "JPEG"), (10, 10)).shape == (10, 10, 3)


def _bomb(side):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


PNG, JPEG = encoded(COLOUR), encoded(COLOUR, "JPEG")
PIXELS = PNG.index(b"IDAT") + 20  # a byte among those of the pixels
REFUSED = {
    "empty": (b"", "^empty$"),
    "text": (b"GIF is not read here, nor is text", "neither a JPEG nor a PNG"),
    "another format": (encoded(COLOUR, "BMP"), "neither a JPEG nor a PNG"),
    "PNG cut in its pixels": (PNG[:PIXELS], "[Tt]runcated"),
    "PNG cut at its end": (PNG[:-6], "broken|[Tt]runcated"),
    "PNG cut in its last checksum": (PNG[:-2], "truncated"),
    "PNG cut in its header": (PNG[:20], "neither|[Tt]runcated"),
    "PNG with a flipped bit": (PNG[:PIXELS] + bytes([PNG[PIXELS] ^ 1]) + PNG[PIXELS + 1 :], "checksum"),
    "JPEG cut in half": (JPEG[: len(JPEG) // 2], "[Tt]runcated"),
    "JPEG cut at its end": (JPEG[:-1], "truncated"),
    "a bomb": (_bomb(10_000), "more than 89,478,485 pixels"),
    "a larger bomb": (_bomb(60_000), "more than 89,478,485 pixels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_no_whole_image_is_refused(tmp_path, case, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as another library may have set it
    data, reason = REFUSED[case]
    with pytest.raises(decode.Unreadable, match=reason):
        decoded(tmp_path, data)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(decode.Unreadable, match="No such file"), decode.careful():
        decode.decode(tmp_path / "nowhere.png")


def test_every_cut_and_every_flipped_bit_ends_in_pixels_or_a_reason(tmp_path):
    for data in (PNG, JPEG):
        for place in range(0, len(data), 9):
            flipped = data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]
            for broken in (data[:place], flipped):
                (tmp_path / "file").write_bytes(broken)
                [outcome], _ = decode.decode_all([str(tmp_path / "file")], COLOUR.shape, resize=False)
                assert outcome
                assert not isinstance(outcome, str) or "\n" not in outcome
