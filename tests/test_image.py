import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sphinx_jax.data import image as im

DATA = Path(__file__).parent / "data" / "images"


def expected(name: str) -> np.ndarray:
    """The reference's output, channels first, as channels last."""
    with np.load(DATA / name) as arrays:
        return np.moveaxis(arrays["image"], 1, -1)


def encoded(size: tuple[int, int], mode: str = "RGB", fmt: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, fmt)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [224, 448])
def test_padded_resize_equals_the_reference_to_the_digit(size):
    for picture, reference in zip(("img0.png", "img1.png"), expected(f"pre_{size}.npz"), strict=True):
        ours = im.preprocess(im.load_image(DATA / picture), size)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, reference)


@pytest.mark.parametrize("name", ["tiny37x20", "square224", "gray_L", "odd1"])
def test_odd_pictures_equal_the_reference(name):
    with np.load(DATA / "pre_224_extra.npz") as arrays:
        reference = np.moveaxis(arrays[name], 0, -1)
    np.testing.assert_array_equal(im.preprocess(im.load_image(str(DATA / f"{name}.png")), 224), reference)


def test_resized_center_crop_equals_the_reference():
    for picture, reference in zip(("img0.png", "img1.png"), expected("pre_224_resized_center_crop.npz"), strict=True):
        ours = im.preprocess(im.load_image(DATA / picture), 224, "resized_center_crop")
        np.testing.assert_array_equal(ours, reference)


def test_normalise_is_undone_exactly_for_every_pixel_value():
    pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    np.testing.assert_array_equal(im.denormalise(im.normalise(pixels)), pixels)


def test_normalised_clip_mean_is_nothing():
    assert np.abs(im.normalise(np.array([im.PAD_COLOUR], np.uint8))).max() < 0.02


@settings(max_examples=40, deadline=None)
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


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 32), st.integers(0, 2**32 - 1))
def test_every_resizer_gives_the_size_asked_for(width, height, size, seed):
    picture = Image.new("RGB", (width, height), (10, 200, 30))
    for how in ("padded_resize", "resized_center_crop", "random_resized_crop"):
        values = im.preprocess(picture, size, how, np.random.default_rng(seed))
        assert values.shape == (size, size, 3)
        if how != "padded_resize":
            assert (im.denormalise(values) == (10, 200, 30)).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(20, 400), st.integers(20, 400), st.integers(0, 2**32 - 1))
def test_random_box_keeps_to_the_picture_the_area_and_the_ratio(width, height, seed):
    left, top, right, bottom = im._random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    slack = 1 + 2 / min(w, h)
    assert 0.75 / slack <= w / h <= 1.3333 * slack
    if 0.75 <= width / height <= 1.3333:
        assert w * h >= 0.9 * width * height / slack**2


def test_random_crop_depends_on_the_generator_alone():
    picture = im.load_image(DATA / "square224.png")
    first, again, other = (
        im.preprocess(picture, 64, "random_resized_crop", np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    content = encoded((9, 5), mode, "TIFF")
    image = im.load_image(content)
    assert (image.mode, image.size) == ("RGB", (9, 5))


def test_path_bytes_and_image_load_alike():
    path = DATA / "img1.png"
    sources = (path, str(path), path.read_bytes(), Image.open(path))
    pictures = [np.asarray(im.load_image(source)) for source in sources]
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


def test_exif_orientation_is_left_alone_as_in_the_reference():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    assert im.load_image(buffer.getvalue()).size == (40, 20)


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
    with pytest.raises(ValueError, match="unknown pre-processing 'crop'.*padded_resize"):
        im.preprocess(picture, 8, "crop")
    with pytest.raises(ValueError, match="needs rng"):
        im.preprocess(picture, 8, "random_resized_crop")
    with pytest.raises(ValueError, match="at least 1 pixel"):
        im.preprocess(picture, 0)
    with pytest.raises(ValueError, match="uint8"):
        im.normalise(np.zeros((2, 2, 3)))
