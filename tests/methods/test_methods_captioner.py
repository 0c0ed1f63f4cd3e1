"""TL;DR's captioner: the quantiser and losses against official values, and what its training and its Model promise."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from methods_reference import tldr

from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.errors import UserError
from orchestrator.methods.captioner.config import Captioner as Options
from orchestrator.methods.captioner.keywords import keywords
from orchestrator.methods.captioner.loss import codebook_loss, language_modelling, perplexity, usage
from orchestrator.methods.captioner.method import CaptionerMethod, by_frequency
from orchestrator.models import artifact
from orchestrator.models.captioner import Captioner
from orchestrator.models.config import ModelSpec
from orchestrator.models.inheritance import inherit
from orchestrator.models.open_clip_bridge import create
from orchestrator.models.quantiser import Codebook
from orchestrator.stages.train.config import Pretrain
from orchestrator.training.gradient_cache import Encoder, forward_backward
from orchestrator.training.method import Build
from orchestrator.training.types import Batch, World

SHAPE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
}
OPTIONS = {"codes": 16, "vocabulary": 64}
TOKENIZER = Tokenizer(context_length=12)
STATE = {"samples": 0, "phase": "train"}
COLOURS, THINGS = ("red", "green", "blue", "white"), ("apple", "dog", "ship", "house")
CAPTIONS = [f"{one} {two} {three}" for one in COLOURS for two in THINGS for three in ("one", "two", "three", "four")]


def method(shape=SHAPE, inherited=False, **options) -> CaptionerMethod:
    config = Options(**OPTIONS | options)
    model = CaptionerMethod.make_model(config, shape, seed=1)
    build = Build(
        model,
        teacher=None,
        total_samples=64,
        batch=64,
        world=World(),
        seed=0,
        tokenizer=TOKENIZER,
        inherited=inherited,
        captions=lambda limit: CAPTIONS[:limit],
    )
    return CaptionerMethod(config, build)


def pairs() -> Batch:
    """64 pictures of four patches whose colours are those of a caption's parts."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(3, 4, 3, generator=generator)
    numbers = torch.arange(64)
    seen = torch.stack([patches[0, numbers // 16], patches[1, numbers // 4 % 4], patches[2, numbers % 4]], dim=2)
    pixels = F.pad(seen, (0, 1)).view(64, 3, 2, 2)
    images = pixels.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return Batch((images,), (TOKENIZER(CAPTIONS),), tuple(f"{i:032x}" for i in range(64)))


@pytest.mark.parametrize(
    ("case", "beta_weighs", "pieces"),
    [("vq_paper_beta", "tokens", 1), ("vq_three_codes_per_token", "codebook", 3)],
)
def test_quantiser_has_the_official_values_and_gradients(case, beta_weighs, pieces):
    expected = tldr(case)
    tokens, weight = (expected[f"inputs/{name}"].requires_grad_() for name in ("z", "codebook"))
    book = Codebook(8, 6, pieces)
    book.weight = torch.nn.Parameter(weight)
    found = book(tokens)
    loss = codebook_loss(found.commitment, found.codebook, 0.25, beta_weighs)
    assert loss.item() == pytest.approx(expected["expected/loss"], rel=1e-5)
    assert found.codes.flatten().tolist() == expected["expected/indices"].tolist()
    torch.testing.assert_close(found.tokens, expected["expected/z_q"], rtol=1e-5, atol=1e-6)
    total = loss + (expected["inputs/downstream_weight"] * found.tokens).sum()
    for name, value in (("loss", loss), ("total", total)):
        slopes = torch.autograd.grad(value, (tokens, book.weight), retain_graph=True)
        for side, slope in zip(("z", "codebook"), slopes, strict=True):
            torch.testing.assert_close(slope, expected[f"grads/{name}_wrt_{side}"], rtol=1e-4, atol=1e-6)


def test_a_token_equal_to_a_code_costs_nothing_and_the_first_of_equal_codes_is_taken():
    book = Codebook(5, 4)
    book.weight.data = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    book.weight.data[3] = book.weight.data[1]
    found = book(book.weight.data[None])
    assert found.codes.tolist() == [[0, 1, 2, 1, 4]]
    assert found.commitment.item() == 0
    assert found.codebook.item() == 0


def test_language_modelling_is_the_mean_over_the_tokens_that_a_caption_has():
    model = method().eval().model
    tokens = TOKENIZER(["red dog", "a green ship one two"])
    images = pairs().images[0][:2]
    told = model(images, tokens)
    rows = model.token_rows(tokens)
    logits = model.logits(model.text_states(rows[:, :-1], told.quantised.tokens))
    labels = rows[:, 1:].clone()
    labels[0, tokens[0].argmax() :] = -100
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert told.tokens.tolist() == [3, 6]
    torch.testing.assert_close(language_modelling(told.loss, told.tokens, World()), expected)
    apart = [F.cross_entropy(one, label, ignore_index=-100, reduction="sum") for one, label in zip(logits, labels)]
    torch.testing.assert_close(told.loss, torch.stack(apart))


def test_padding_has_no_effect():
    model = method().eval().model
    images, tokens = pairs().images[0][:1], TOKENIZER(["red dog"])
    padded = F.pad(tokens, (0, 5))
    torch.testing.assert_close(model(images, padded).loss, model(images, tokens).loss)
    other = padded.clone()
    other[:, tokens.shape[1] :] = 77
    torch.testing.assert_close(model(images, other).loss, model(images, tokens).loss)


def test_a_padded_exclamation_mark_is_a_word():
    tokens = TOKENIZER(["dog !", "dog"])
    assert tokens[0, 2] in (0, 256)
    assert method().model(pairs().images[0][:2], tokens).tokens.tolist() == [3, 2]


def test_total_is_both_terms_and_the_codebook_learns_from_its_own_alone():
    gradients = []
    for lm_weight in (1.0, 1e-9):
        trained = method(lm_weight=lm_weight, emb_weight=2.0)
        output = trained.loss(trained.encode(pairs()), STATE)
        torch.testing.assert_close(output.total, output.terms["lm"] + output.terms["emb"])
        output.total.backward()
        gradients.append(trained.model.codebook.weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_micro_batches_give_the_gradient_of_the_whole_batch(smoothing):
    found = []
    for micro_batch in (None, 7):
        trained = method(label_smoothing=smoothing)
        encode = Encoder(trained, lambda pixels: pixels, torch.device("cpu"), autocast=None, seed=0)
        output = forward_backward(encode, pairs(), micro_batch, (0, 0), STATE)
        found.append((output.total, [parameter.grad for parameter in trained.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_arithmetic_is_what_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    from orchestrator.models.flops import CPU_ATTENTION

    trained = method()
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter, torch.no_grad():
        trained.encode(pairs())
    assert 3 * counter.get_total_flops() == pytest.approx(trained.flops(pairs()), rel=0.02)


def test_perplexity_counts_equally_frequent_codes():
    assert perplexity(usage(torch.tensor([[0, 1, 2, 3]]), 8, World())).item() == pytest.approx(4)
    assert perplexity(usage(torch.tensor([[5, 5]]), 8, World())).item() == pytest.approx(1)


def test_dead_codes_take_the_place_of_tokens():
    trained = method(revive_after=10, codebook_init="uniform")
    features = trained.encode(pairs())
    trained.loss(features, STATE)
    before = trained.model.codebook.weight.clone()
    trained.on_step_end(64)
    assert torch.equal(trained.model.codebook.weight, before)  # all are new
    dead = torch.bincount(features["codes"].flatten(), minlength=16) == 0
    assert dead.any()
    trained.loss(features, {"samples": 64, "phase": "train"})
    trained.on_step_end(128)
    torch.testing.assert_close(trained.model.codebook.weight[dead], features["spare"][: int(dead.sum())])
    assert torch.equal(trained.model.codebook.weight[~dead], before[~dead])


@pytest.fixture
def one_thread():
    """Networks as small as these are slower in several threads, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_overfits_a_few_pairs_through_a_living_codebook(one_thread):
    trained, batch = method(codes=32), pairs()
    optimiser = torch.optim.AdamW(trained.parameters(), lr=4e-3, weight_decay=0.0)
    for step in range(200):
        output = trained.loss(trained.encode(batch), {"samples": 64 * step, "phase": "train"})
        optimiser.zero_grad()
        output.total.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        trained.on_step_end(64 * (step + 1))
        if output.terms["lm"] < 0.1:
            break
    assert output.terms["lm"].item() < 0.1
    assert output.reported["alive"].item() > 0.25
    assert output.reported["perplexity"].item() > 4
    model = trained.eval().model
    for beams in (1, 3):
        written = model.generate(batch.images[0], beams=beams, max_tokens=8)
        assert sum(TOKENIZER.spell(ids) == text for ids, text in zip(written.tolist(), CAPTIONS)) > 40
    own = model.likelihood(batch.images[0], batch.tokens[0])
    assert (own > model.likelihood(batch.images[0], batch.tokens[0].roll(1, 0))).float().mean() > 0.9


def test_codes_do_not_depend_on_the_batch_they_came_in():
    model, images = method(pieces=2).eval().model, pairs().images[0]
    codes = model.codes(images)
    assert codes.shape == (64, 5 * 2)
    for size in (1, 5, 32, 40):
        assert torch.equal(torch.cat([model.codes(part) for part in images.split(size)]), codes)


def test_a_saved_captioner_gives_the_same_codes_and_captions(tmp_path):
    model, images = method().eval().model, pairs().images[0][:4]
    artifact.save(model, Preprocess(16), TOKENIZER, tmp_path)
    loaded = artifact.load(tmp_path)[0]
    assert json.loads((tmp_path / artifact.STRUCTURE).read_text())["capabilities"] == sorted(model.capabilities)
    assert torch.equal(loaded.codes(images), model.codes(images))
    assert torch.equal(loaded.generate(images, beams=2), model.generate(images, beams=2))
    assert torch.equal(loaded.encode_image(images), model.encode_image(images))


def test_writing_token_by_token_is_reading_at_once():
    model, images = method().eval().model, pairs().images[0][:3]
    written = model.generate(images, min_tokens=3, max_tokens=6)
    rows = model.token_rows(written)
    scores = model.logits(model.text_states(rows[:, :-1], model.quantise(images).tokens))
    scores[..., model.token_rows(torch.tensor([model.start]))] = float("-inf")
    scores[..., model.vocabulary :] = float("-inf")
    ends = written.argmax(dim=1)
    for row, end in enumerate(ends.tolist()):
        assert 3 <= end - 1 <= 6
        assert torch.equal(scores[row, 3 : min(end, 6)].argmax(-1), rows[row, 4 : min(end, 6) + 1])
        assert not written[row, end + 1 :].any()


def test_beams_find_captions_at_least_as_likely():
    model, images = method().eval().model, pairs().images[0][:8]
    one, many = (model.likelihood(images, model.generate(images, beams=k, max_tokens=5)) for k in (1, 4))
    assert (many >= one - 1e-5).all()


def test_tokens_outside_of_the_vocabulary_are_one_that_is_never_written():
    model = method().eval().model
    known = model.ids.tolist()
    assert {model.start, model.end} <= set(known)
    assert len(known) == 64
    assert set(TOKENIZER(CAPTIONS).unique().tolist()) - {0} <= set(known)
    assert model.token_rows(torch.tensor([known[5], 40_000])).tolist() == [5, 64]
    assert set(model.generate(pairs().images[0]).unique().tolist()) <= {0, *known}


def test_frequent_tokens_are_known_first_and_padding_is_none():
    tokens = TOKENIZER(["dog dog ship", "dog"])
    dog, ship = tokens[0, 1].item(), tokens[0, 3].item()
    assert by_frequency(tokens) == [dog, 49406, 49407, ship]


def test_keywords_are_frequent_words_and_phrases_without_function_words():
    captions = ["A red apple on the table", "the red apple", "an apple and a dog", "Dog"]
    assert keywords(captions, 4) == ["apple", "dog", "red", "red apple"]
    assert len(keywords(captions, 99)) == 5


@pytest.mark.parametrize("shape", [SHAPE, SHAPE | {"vision_cfg": SHAPE["vision_cfg"] | {"width": 48}}])
def test_keyword_codes_have_the_scale_of_tokens_and_follow_the_captions(shape):
    weight, again = (method(shape, codes=32).model.codebook.weight for _ in range(2))
    assert torch.equal(weight, again)
    torch.testing.assert_close(weight[:16].mean(dim=1), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(weight[:16].std(dim=1), torch.ones(16))
    assert not torch.equal(weight, method(shape, codes=32, codebook_init="uniform").model.codebook.weight)


def test_inherited_codes_and_vocabulary_stay():
    trained = method(inherited=True)
    assert trained.model.ids.tolist() == [*range(62), 49406, 49407]
    assert trained.model.codebook.weight.abs().max() <= 1 / 16


def test_it_inherits_a_clip_image_tower_or_all_of_its_like():
    student, clip = method().model, create(SHAPE, seed=5)
    book = student.codebook.weight.clone()
    inherit(student, clip)
    images = pairs().images[0][:4]
    tower = clip.network.visual
    torch.testing.assert_close(
        student.image_tokens(images)[:, 0], tower.ln_post(tower.transformer(tower._embeds(images)))[:, 0]
    )
    assert torch.equal(student.codebook.weight, book)
    other = method(codebook_init="uniform").model
    inherit(other, student)
    assert torch.equal(other.codes(images), student.codes(images))
    with pytest.raises(UserError, match="same shape and options"):
        inherit(method(codes=8).model, student)


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"vision_cfg": {"layers": [1, 1, 1, 1], "image_size": 32}}, {}, "ResNet"),
        ({"text_cfg": {"no_causal_mask": True}}, {}, "no_causal_mask"),
        ({}, {"pieces": 3}, "3 pieces"),
        ({}, {"vocabulary": 50_000}, "50000 is more than"),
    ],
)
def test_shapes_it_cannot_train_are_refused_when_a_recipe_is_read(changes, options, reason):
    with pytest.raises(ValueError, match=reason):
        Options(**options).check(ModelSpec(open_clip=SHAPE | changes))


def test_a_stage_that_validates_by_comparing_with_texts_is_refused():
    stage = {"data": "pairs", "model": {"open_clip": SHAPE}, "method": "captioner", "steps": 3}
    assert Pretrain.model_validate(stage).capabilities() == Captioner.capabilities
    with pytest.raises(ValueError, match="captioner cannot"):
        Pretrain.model_validate(stage | {"validation": {"every_samples": 100}})


def test_smoke_options_fit_the_smoke_shape():
    spec = ModelSpec(open_clip=SHAPE).smoke()
    options = Options(pieces=3).smoke()
    options.check(spec)
    assert isinstance(CaptionerMethod.make_model(options, spec.open_clip, 0), Captioner)
