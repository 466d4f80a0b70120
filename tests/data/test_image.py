import base64
import io
import struct
import zlib

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sphinx_jax.data import image as im

IMAGES = DATA / "images"


def expected(name: str) -> np.ndarray:
    """The reference's output, channels first, as channels last."""
    with np.load(IMAGES / name) as arrays:
        return np.moveaxis(arrays["image"], 1, -1)


def encoded(size: tuple[int, int], mode: str = "RGB", fmt: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, fmt)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [224, 448])
def test_padded_resize_equals_the_reference_to_the_digit(size):
    for picture, reference in zip(("img0.png", "img1.png"), expected(f"pre_{size}.npz"), strict=True):
        ours = im.preprocess(im.load_image(IMAGES / picture), size)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, reference)


@pytest.mark.parametrize("name", ["tiny37x20", "square224", "gray_L", "odd1"])
def test_odd_pictures_equal_the_reference(name):
    with np.load(IMAGES / "pre_224_extra.npz") as arrays:
        reference = np.moveaxis(arrays[name], 0, -1)
    np.testing.assert_array_equal(im.preprocess(im.load_image(str(IMAGES / f"{name}.png")), 224), reference)


def test_normalised_clip_mean_is_nothing():
    assert np.abs(im.preprocess(Image.new("RGB", (4, 4), im.PAD_COLOUR), 4)).max() < 0.02


@settings(max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90))
def test_padding_is_centred_and_leaves_the_picture_alone(width, height):
    pixels = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), np.uint8)
    side = max(width, height)
    # At its own size nothing is resampled, so the picture stands untouched at the documented offset.
    square = im.padded_resize(Image.fromarray(pixels), side)
    left, top = (side - width) // 2, (side - height) // 2
    np.testing.assert_array_equal(square[top : top + height, left : left + width], pixels)
    outside = np.ones((side, side), bool)
    outside[top : top + height, left : left + width] = False
    assert (square[outside] == im.PAD_COLOUR).all()


@settings(max_examples=60)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 32))
def test_every_picture_becomes_a_square_of_the_size_asked_for(width, height, size):
    picture = Image.new("RGB", (width, height), (10, 200, 30))
    assert im.preprocess(picture, size).shape == (size, size, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    content = encoded((9, 5), mode, "TIFF")
    image = im.load_image(content)
    assert (image.mode, image.size) == ("RGB", (9, 5))


def test_path_bytes_and_image_load_alike():
    path = IMAGES / "img1.png"
    sources = (path, str(path), path.read_bytes(), Image.open(path))
    pictures = [np.asarray(im.load_image(source)) for source in sources]
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


def turned(orientation: int, fmt: str = "PNG") -> bytes:
    """A picture of which the camera says how it was held: 30x20, its first row red, its first column blue."""
    picture = Image.new("RGB", (30, 20), (0, 99, 0))
    picture.paste((255, 0, 0), (0, 0, 30, 1))
    picture.paste((0, 0, 255), (0, 1, 1, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, fmt, exif=exif)
    return buffer.getvalue()


# EXIF's own table: which side of the scene the first row and the first column of the file show
@pytest.mark.parametrize(
    ("orientation", "row", "column"),
    [
        (1, "top", "left"),
        (2, "top", "right"),
        (3, "bottom", "right"),
        (4, "bottom", "left"),
        (5, "left", "top"),
        (6, "right", "top"),
        (7, "right", "bottom"),
        (8, "left", "bottom"),
    ],
)
def test_pictures_stand_as_their_exif_orientation_says(orientation, row, column):
    def sides(picture):
        pixels = np.asarray(picture)
        width, height = picture.width // 2, picture.height // 2
        middles = {
            "top": pixels[0, width],
            "bottom": pixels[-1, width],
            "left": pixels[height, 0],
            "right": pixels[height, -1],
        }
        found = {tuple(map(int, colour)): side for side, colour in middles.items()}
        return found[255, 0, 0], found[0, 0, 255]

    content = turned(orientation)
    upright = im.load_image(content)
    assert sides(upright) == (row, column)
    assert upright.size == ((30, 20) if orientation < 5 else (20, 30))
    assert sides(im.load_image(Image.open(io.BytesIO(content)))) == (row, column)
    # once alone, and not at all where the reference's own numbers are wanted
    assert sides(im.load_image(upright)) == (row, column)
    assert sides(im.load_image(content, exif=False)) == ("top", "left")


def test_exif_turns_a_photograph_and_damaged_exif_turns_nothing():
    assert im.load_image(turned(6, "JPEG")).size == (20, 30)
    for exif in (b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II", b"nothing"):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
        assert im.load_image(buffer.getvalue()).size == (40, 20)
    assert im.load_image(turned(99)).size == (30, 20)


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def saved(array: np.ndarray | Image.Image, fmt: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("values", "fmt"),
    [
        (RAMP.astype(np.uint16) * 257, "PNG"),
        (RAMP.astype(np.uint16) * 257, "TIFF"),
        ((RAMP.astype(np.uint16) * 257).astype(">u2"), "TIFF"),
        (RAMP.astype(np.int32) * 257, "TIFF"),
        (RAMP.astype(np.int32), "TIFF"),
        (RAMP.astype(np.int32) * 1_000_003, "TIFF"),
        (RAMP.astype(np.int32) * 100 - 20_000, "TIFF"),
        ((RAMP / 255).astype(np.float32), "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
        (RAMP.astype(np.float32) * 257, "TIFF"),
        ((RAMP / 127.5 - 1).astype(np.float32), "TIFF"),
        (RAMP.astype(np.float32) * 1e20 - 1e22, "TIFF"),
    ],
)
def test_grey_of_more_than_8_bits_keeps_its_shades(values, fmt):
    for source in (saved(values, fmt), Image.fromarray(values)):
        pixels = np.asarray(im.load_image(source))
        np.testing.assert_array_equal(pixels, np.repeat(RAMP[..., None], 3, axis=2))


def test_a_dark_picture_of_16_bits_stays_dark():
    dark = np.array([[0, 257, 128 * 257]], np.uint16)
    for fmt in ("PNG", "TIFF"):
        assert np.asarray(im.load_image(saved(dark, fmt)))[0, :, 0].tolist() == [0, 1, 128]
    assert np.asarray(im.load_image(b"P5 3 1 65535 " + dark.astype(">u2").tobytes()))[0, :, 0].tolist() == [0, 1, 128]
    for constant in (0, -5):
        assert not np.asarray(im.load_image(Image.fromarray(np.full((2, 2), constant, np.int32)))).any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(wrong):
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = wrong
    with pytest.raises(im.BadImage, match="^an image of .* bytes holds values that are not finite"):
        im.load_image(saved(values, "TIFF"))


def two_pixels(mode: str, **options) -> bytes:
    """The left one has the red of (200, 0, 0) and is transparent, the right one is opaque and white."""
    rgba = Image.fromarray(np.array([[[200, 0, 0, 0], [255, 255, 255, 255]]], np.uint8))
    return saved(rgba.convert(mode) if mode != "RGBA" else rgba, "PNG", **options)


@pytest.mark.parametrize(
    "content",
    [
        two_pixels("RGBA"),
        two_pixels("LA"),
        two_pixels("RGB", transparency=(200, 0, 0)),
        saved(np.array([[7, 255]], np.uint8), "PNG", transparency=7),
        saved(np.array([[7, 65535]], np.uint16), "PNG", transparency=7),
        saved(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), "PNG", transparency=0),
        saved(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("P"), "PNG", transparency=0),
        saved(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("P"), "GIF", transparency=0),
    ],
    ids=["RGBA", "LA", "RGB tRNS", "L tRNS", "16 bits tRNS", "1 tRNS", "P tRNS", "GIF"],
)
def test_what_is_transparent_shows_the_padding(content):
    assert np.asarray(im.load_image(content)).tolist() == [[list(im.PAD_COLOUR), [255, 255, 255]]]


def png(bits: int, colour: int, row: bytes, key: bytes) -> bytes:
    """A PNG of two pixels in a form that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"tRNS", key) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        png(16, 2, struct.pack(">x6H", 40000, 1, 2, 65535, 65535, 65535), struct.pack(">3H", 40000, 1, 2)),
        png(4, 0, b"\0\x7f", struct.pack(">H", 7)),
        png(2, 0, b"\0\x70", struct.pack(">H", 1)),
    ],
    ids=["RGB of 16 bits", "grey of 4 bits", "grey of 2 bits"],
)
def test_transparency_at_other_depths(content):
    assert np.asarray(im.load_image(content)).tolist() == [[list(im.PAD_COLOUR), [255, 255, 255]]]


def test_half_transparent_is_half_the_padding_and_opaque_is_left_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    pixels[0, 0] = 0, 0, 0, 128
    pixels[1:, :, 3] = 255
    read = np.asarray(im.load_image(Image.fromarray(pixels)))
    np.testing.assert_array_equal(read[1:], pixels[1:, :, :3])
    assert np.abs(read[0, 0] - np.array(im.PAD_COLOUR) / 2).max() <= 1


def test_data_urls_are_read():
    content = encoded((9, 5))
    text = base64.b64encode(content).decode()
    for url in (f"data:image/png;base64,{text}", f"DATA:;BASE64,{text[:60]}%0A{text[60:]}"):
        np.testing.assert_array_equal(im.load_image(url), im.load_image(content))
    for wrong in ("data:image/png;base64", "data:;base64,???", f"data:;base64,{text[:-3]}!", "data:,text"):
        with pytest.raises(im.BadImage):
            im.load_image(wrong)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("https://example.org/cat.jpg", "https://example.org/cat.jpg is a web address; download it"),
        ("FTP://example.org/" + "x" * 5000, "is a web address"),
        ("foo://bar/cat.jpg", "no known object store"),
        ("x" * 5000, "cannot be read"),
        ("x\0y.png", "cannot be read"),
        ("\ud800.png", r"image \ud800.png cannot be read"),
        ("", "cannot be read"),
        ("a\nb.png", r"image a\nb.png does not exist"),
        ("data:" + "x" * 5000, "no comma"),
    ],
)
def test_names_that_are_no_files_are_refused_in_one_short_line(source, reason):
    with pytest.raises(im.BadImage) as caught:
        im.load_image(source)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_pictures_are_refused_in_one_line(fmt, share):
    content = encoded((64, 48), fmt=fmt)
    with pytest.raises(im.BadImage) as caught:
        im.load_image(content[: int(len(content) * share)])
    assert "\n" not in str(caught.value) and "image" in str(caught.value)


def test_bad_sources_name_themselves(tmp_path):
    with pytest.raises(im.BadImage, match=r"gone\.png does not exist"):
        im.load_image(tmp_path / "gone.png")
    with pytest.raises(im.BadImage, match="cannot be read"):
        im.load_image(tmp_path)
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    with pytest.raises(im.BadImage, match=r"text\.png is not a picture"):
        im.load_image(text)
    with pytest.raises(im.BadImage, match="0 bytes is not a picture"):
        im.load_image(b"")
    with pytest.raises(im.BadImage, match="not int"):
        im.load_image(3)


def test_a_picture_whose_square_would_not_fit_in_memory_is_refused():
    with pytest.raises(im.BadImage, match="60000x2"):
        im.load_image(Image.new("L", (60000, 2)))


def test_bad_options_are_named():
    picture = Image.new("RGB", (4, 4))
    with pytest.raises(ValueError, match="at least 1 pixel"):
        im.preprocess(picture, 0)
