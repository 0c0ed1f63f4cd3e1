"""Pixels and tokens: decoding, augmentation, captions, and agreement with open_clip where it has the same thing."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from orchestrator.data import transforms
from orchestrator.data.captions import CaptionPolicy, choose
from orchestrator.data.dataset import Caption
from orchestrator.data.draws import uniforms
from orchestrator.data.preprocess import Preprocess, Tokenizer, composite, load
from orchestrator.data.transforms import Augment
from orchestrator.errors import DataError, StageError

TEXTS = ["a cat", "", "Don't  PANIC &amp; co", "naïve café 猫 🐈", "<start_of_text> 1234 it's", "word " * 100]


def encode(pixels: np.ndarray, mode: str, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, channels), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def augment(picture: Image.Image, size: int, config: Augment, draws: list[float]) -> np.ndarray:
    view, background = transforms.augment(picture, size, config, draws)
    return composite([view], [background])[0]


def test_tokens_equal_open_clips():
    from orchestrator.data.torchvision_ops import declare_missing_torchvision_operators

    declare_missing_torchvision_operators()
    import open_clip

    expected = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    assert torch.equal(Tokenizer()(TEXTS, cut=False), expected)
    cut = Tokenizer()(TEXTS[:4])
    longest = int((expected[:4] != 0).sum(dim=1).max())
    assert torch.equal(cut, expected[:4, :longest])


def test_a_short_context_keeps_the_end_of_text_token():
    tokens = Tokenizer(context_length=5)(TEXTS, cut=False)
    assert tokens.shape == (len(TEXTS), 5)
    assert (tokens.max(dim=1).values == 49407).all()
    assert tokens[-1, -1] == 49407


def test_an_unknown_tokenizer_is_refused():
    with pytest.raises(StageError, match="clip-bpe"):
        Tokenizer(name="sentencepiece")


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 100), (90, 64), (20, 20)])
def test_decoding_an_opaque_image_equals_open_clips_evaluation_transform(height, width):
    from orchestrator.data.torchvision_ops import declare_missing_torchvision_operators

    declare_missing_torchvision_operators()
    from open_clip.transform import image_transform

    pixels = noise(height, width, 3)
    preprocess = Preprocess(image_size=32)
    ours = preprocess.normalise(torch.from_numpy(preprocess.decode(encode(pixels, "RGB")))[None])[0]
    theirs = image_transform(32, is_train=False, mean=preprocess.mean, std=preprocess.std)(Image.fromarray(pixels))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 90)])
def test_transparent_pixels_show_the_background_and_bleed_no_colour(background):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 0] = 255  # red under full transparency
    pixels[:, 32:] = (0, 0, 255, 255)
    out = Preprocess(image_size=32, background=background).decode(
        encode(pixels, "RGBA", "WEBP", lossless=True, exact=True)
    )
    assert out.shape == (3, 32, 32)
    assert out[:, :, :14].reshape(3, -1).T.tolist() == [list(background)] * (32 * 14)
    assert out[:, 5, 25].tolist() == [0, 0, 255]
    composited = Image.fromarray(pixels)
    white = Image.new("RGBA", (64, 64), (*background, 255))
    white.alpha_composite(composited)
    direct = Preprocess(image_size=32).decode(encode(np.asarray(white.convert("RGB")), "RGB"))
    assert np.abs(out.astype(int) - direct).max() <= 40  # ringing at the edge is clipped in another order
    assert np.abs(out.astype(int) - direct).mean() < 2


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_decodes_to_three_channels(mode):
    buffer = io.BytesIO()
    Image.new(mode, (16, 16)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    assert Preprocess(image_size=8).decode(buffer.getvalue()).shape == (3, 8, 8)


@pytest.mark.parametrize("data", [b"", b"nonsense", encode(noise(32, 32, 3), "RGB")[:200]])
def test_undecodable_bytes_are_a_data_error(data):
    with pytest.raises(DataError, match="cannot be decoded"):
        load(data)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(3, 90), st.integers(3, 90), st.sampled_from(["white", "random"]))
def test_augmented_views_are_images_of_the_right_shape_and_repeat_by_name(uid, width, height, background):
    picture = load(encode(noise(height, width, 4), "RGBA"))
    config = Augment(scale=[0.3, 1.0], flip=0.5, background=background)
    draws = uniforms(0, "augment", 0, f"{uid}", 0)
    view = augment(picture, 16, config, draws)
    assert (view.shape, view.dtype) == ((3, 16, 16), np.uint8)
    assert (view == augment(picture, 16, config, draws)).all()
    assert draws != uniforms(0, "augment", 1, f"{uid}", 0)


def test_the_whole_image_augmented_is_the_evaluation_image():
    data = encode(noise(64, 64, 4), "RGBA")
    whole = augment(load(data), 32, Augment(scale=[1.0, 1.0], ratio=[1.0, 1.0]), [0.5] * 8)
    assert (whole == Preprocess(image_size=32).decode(data)).all()
    mirrored = augment(load(data), 32, Augment(scale=[1.0, 1.0], ratio=[1.0, 1.0], flip=1.0), [0.5] * 8)
    assert np.abs(mirrored[:, :, ::-1].astype(int) - whole).max() <= 1


def test_crops_keep_the_stated_share_of_the_area():
    """A ramp tells where a crop begins and ends: its contrast is the crop's width."""
    ramp = np.repeat(np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, 0), 3, 2)
    picture = load(encode(ramp, "RGB"))
    widths = []
    for n in range(300):
        view = augment(
            picture, 32, Augment(scale=[0.25, 0.25], ratio=[1.0, 1.0]), uniforms(0, "augment", 0, str(n), 0)
        )
        widths.append(int(view[0, 16, -1]) - int(view[0, 16, 0]))
    assert min(widths) >= 94
    assert max(widths) <= 100


def test_images_with_and_without_alpha_share_a_batch():
    pictures = [load(encode(noise(8, 8, 4, seed=1), "RGBA")), load(encode(noise(8, 8, 3, seed=2), "RGB"))]
    colours = [(1, 2, 3), (4, 5, 6)]
    together = composite(pictures, colours)
    assert all((together[n] == composite([pictures[n]], [colours[n]])[0]).all() for n in range(2))


def test_random_backgrounds_differ_and_white_is_white():
    clear = load(encode(np.zeros((8, 8, 4), np.uint8), "RGBA"))
    draws = [uniforms(0, "augment", 0, str(n), 0) for n in range(20)]
    colours = {tuple(augment(clear, 4, Augment(background="random"), d)[:, 0, 0].tolist()) for d in draws}
    assert len(colours) == 20
    assert {tuple(augment(clear, 4, Augment(), d)[:, 0, 0].tolist()) for d in draws} == {(255, 255, 255)}


@pytest.mark.parametrize("wrong", [{"scale": [1.0, 0.5]}, {"scale": [0.0, 1.0]}, {"ratio": [2.0, 1.0]}, {"flip": 2.0}])
def test_impossible_augmentations_are_refused(wrong):
    with pytest.raises(ValidationError):
        Augment(**wrong)


CAPTIONS = (
    Caption("original", "en", "cat"),
    Caption("original", "de", "Katze"),
    Caption("keywords", "en", "pet, paw"),
    Caption("long", "und", "a long text"),
)


@pytest.mark.parametrize(
    ("policy", "shares"),
    [
        ({}, {"cat": 0.5, "Katze": 0.5}),
        ({"lang": "en"}, {"cat": 1.0}),
        ({"lang": "fr"}, {"cat": 1.0}),
        ({"slots": {"original": 1.0, "keywords": 3.0}, "lang": "en"}, {"cat": 0.25, "pet, paw": 0.75}),
        ({"slots": {"original": 1.0, "keywords": 1.0}}, {"cat": 0.25, "Katze": 0.25, "pet, paw": 0.5}),
        ({"slots": {"long": 1.0}, "lang": "de"}, {"a long text": 1.0}),
        ({"slots": {"short": 1.0}}, {"cat": 1.0}),
    ],
)
def test_captions_are_drawn_by_slot_weight_and_language(policy, shares):
    count = Counter(choose(CAPTIONS, CaptionPolicy(**policy), (n + 0.5) / 1000) for n in range(1000))
    assert {text: n / 1000 for text, n in count.items()} == pytest.approx(shares, abs=0.002)


def test_draws_are_uniform_and_told_apart_by_every_part_of_the_name():
    values = np.array([uniforms(0, "test", n) for n in range(2000)])
    assert (np.abs(values.mean(axis=0) - 0.5) < 0.03).all()
    assert (values >= 0).all()
    assert (values < 1).all()
    assert uniforms(0, "a", 1, 23) != uniforms(0, "a", 12, 3)
    assert uniforms(0, "a", "1:b") != uniforms(0, "a", "1", "b")
