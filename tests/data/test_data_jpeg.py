"""JPEG photographs: the fast way agrees with the exact one, and reads no more than a crop needs."""

from __future__ import annotations

import io
import threading

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from orchestrator.data import jpeg
from orchestrator.data.draws import uniforms
from orchestrator.data.preprocess import composite, load
from orchestrator.data.transforms import Augment, View, augment, draw, smallest_crop
from orchestrator.errors import DataError

WHOLE = Augment(scale=[1.0, 1.0], ratio=[1.0, 1.0])
WHITE = (255, 255, 255)


def photograph(width: int, height: int, mode: str = "RGB", seed: int = 0) -> bytes:
    """Smooth shapes with some detail."""
    random = np.random.default_rng(seed)
    picture = Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8)).resize((width, height), Image.BICUBIC)
    detail = random.integers(-6, 7, (height, width, 3))
    pixels = np.clip(np.asarray(picture).astype(int) + detail, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def shown(data: bytes, size: int, config: Augment, view: View) -> np.ndarray:
    out = np.empty((3, size, size), np.uint8)
    jpeg.show(jpeg.decode(data, size, config), view, out)
    return out


@pytest.mark.parametrize("size", [48, 100, 224])
@pytest.mark.parametrize("mirrored", [False, True])
def test_whole_pixel_crops_are_resized_as_pillow_does_within_two_levels(size, mirrored):
    data = photograph(150, 130)
    box = (10, 5, 140, 125)
    exact = load(data).crop(box).resize((size, size), Image.BICUBIC)
    expected = composite([exact.transpose(Image.FLIP_LEFT_RIGHT) if mirrored else exact], [WHITE])[0]
    found = shown(data, size, Augment(), View(box, mirrored, WHITE))
    assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("seed", range(4))
def test_views_are_nearly_those_of_other_formats(seed):
    data, config = photograph(300, 240, seed=seed), Augment(scale=[0.5, 1.0], flip=0.5)
    draws = uniforms(seed, "augment", 0, "a", 0)
    exact, background = augment(load(data), 64, config, draws)
    found = shown(data, 64, config, draw(300, 240, config, draws))
    difference = found.astype(int) - composite([exact], [background])[0]
    assert np.sqrt((difference**2).mean()) < 4  # half a pixel's shift of the crop


@pytest.mark.parametrize(
    ("size", "config", "side"),
    [
        (32, WHOLE, 64),
        (33, WHOLE, 128),
        (64, WHOLE, 128),
        (65, WHOLE, 256),
        (129, WHOLE, 512),
        (32, Augment(scale=[0.2, 1.0], ratio=[1.0, 1.0]), 256),
        (224, WHOLE, 512),
    ],
)
def test_a_picture_is_reduced_as_far_as_its_smallest_crop_keeps_two_pixels_for_one(size, config, side):
    assert jpeg.decode(photograph(512, 512), size, config).shape == (side, side, 3)


def test_reduced_pictures_still_look_the_same():
    data, view = photograph(512, 512), View((0, 0, 512, 512), False, WHITE)
    exact = composite([load(data).resize((64, 64), Image.BICUBIC)], [WHITE])[0]
    reduced = jpeg.decode(data, 64, WHOLE)
    found = np.empty((3, 64, 64), np.uint8)
    jpeg.show(reduced, View((0, 0, *reduced.shape[:2]), view.mirrored, WHITE), found)
    assert np.sqrt(((found.astype(int) - exact) ** 2).mean()) < 2


@pytest.mark.parametrize("config", [Augment(), Augment(scale=[0.1, 0.9], ratio=[0.5, 3.0]), WHOLE])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (90, 400)])
def test_no_crop_is_smaller_than_the_smallest(config, width, height):
    least = smallest_crop(width, height, config)
    boxes = [draw(width, height, config, uniforms(0, "test", n)).box for n in range(500)]
    sizes = np.array([(right - left, bottom - top) for left, top, right, bottom in boxes]).min(axis=0)
    assert (sizes >= np.array(least) - 1e-6).all()
    assert (sizes <= np.array(least) * 1.1 + 1).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 90), (40, 3)])
def test_every_kind_and_shape_of_jpeg_has_views(mode, width, height):
    data, config = photograph(width, height, mode), Augment(scale=[0.1, 1.0])
    for n in range(20):
        view = draw(width, height, config, uniforms(0, "test", n))
        assert np.ptp(shown(data, 16, config, view).astype(int)) >= 0


@pytest.mark.parametrize("data", [photograph(64, 64)[:300], jpeg.START + b"nonsense"])
def test_undecodable_bytes_are_a_data_error(data):
    with pytest.raises(DataError, match="cannot be decoded"):
        jpeg.decode(data, 16, Augment())


def test_views_are_made_by_the_calling_thread_alone():
    """A thread of the loader that woke torch's threads would take cores from the training."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    found: list[int] = []

    def work() -> None:
        picture = jpeg.decode(photograph(700, 700), 224, WHOLE)
        for mirrored in (False, True):
            jpeg.show(picture, View((3, 5, 690, 680), mirrored, WHITE), np.empty((3, 224, 224), np.uint8))
        found.append(psutil.Process().num_threads())

    try:
        thread = threading.Thread(target=work)
        alone = psutil.Process().num_threads()
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert found == [alone + 1]


@pytest.mark.parametrize("size", [16, 64, 224])
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}],
    ids=str,
)
def test_both_decoders_give_the_same_pixels(options, size):
    """The libraries bring their own builds of libjpeg-turbo: this is what `decoder` being no part of the identity
    rests on."""
    pytest.importorskip("simplejpeg")
    options = dict(options)
    mode = options.pop("mode", "RGB")
    for width, height in ((150, 130), (641, 479), (33, 1000), (1025, 769)):
        stream = io.BytesIO()
        picture = Image.open(io.BytesIO(photograph(width, height, seed=width)))
        picture.convert(mode).save(stream, "JPEG", quality=88, **options)
        by = [jpeg.decode(stream.getvalue(), size, Augment(), decoder) for decoder in ("pillow", "auto")]
        assert by[0].shape == by[1].shape
        assert np.array_equal(*by)


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_broken_file_is_refused_by_both_decoders_alike(kept):
    data = photograph(300, 200)
    errors = []
    for decoder in ("pillow", "auto"):
        with pytest.raises(DataError) as refused:
            jpeg.decode(data[: int(kept * len(data))], 64, Augment(), decoder)
        errors.append(refused.value.message)
    assert errors[0] == errors[1]


def test_simplejpeg_decodes_what_is_plain(monkeypatch):
    pytest.importorskip("simplejpeg")
    monkeypatch.setattr(jpeg.Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
    assert jpeg.decode(photograph(600, 400), 64, WHOLE).shape == (200, 300, 3)
