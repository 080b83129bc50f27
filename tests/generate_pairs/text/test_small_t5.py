"""The small text encoder: the same output as transformers' T5, its tokenizer, and its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from generate_pairs.text.small_t5 import PADDING, SmallT5, SmallT5Config, SmallTokenizer, distance_buckets, pad_tokens
from generate_pairs.text.small_t5_encoder import SmallEncoder, describe, embedded_names, save_encoder, tiny_random
from shards.core.errors import Failed, Refused

pytestmark = pytest.mark.quick

CONFIG = SmallT5Config(width=24, depth=3, num_heads=3, head_dim=5, ffn_width=40)
WORDS = SmallT5Config(width=8, depth=1, num_heads=2, head_dim=4, ffn_width=8, words=("a", "three", "!"))


def encoder_of(model: SmallT5, max_tokens: int) -> SmallEncoder:
    return SmallEncoder("x", "0" * 64, model, SmallTokenizer(model.config), max_tokens)


def random_model(config: SmallT5Config) -> SmallT5:
    torch.manual_seed(0)
    model = SmallT5(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.3)
    return model


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 7, 40, 300])
def test_equals_the_t5_encoder_of_transformers(length: int) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_model(CONFIG)
    config = transformers.T5Config(
        vocab_size=CONFIG.vocab_size,
        d_model=24,
        d_kv=5,
        d_ff=40,
        num_layers=3,
        num_heads=3,
        feed_forward_proj="gated-gelu",
    )
    theirs = transformers.T5EncoderModel(config).eval()
    state = model.state_dict()
    theirs.load_state_dict({**state, "encoder.embed_tokens.weight": state["shared.weight"]})
    tokens = torch.randint(1, CONFIG.vocab_size, (3, length), generator=torch.manual_seed(1))
    tokens[0, (length + 1) // 2 :] = PADDING
    seen = tokens != PADDING
    expected = theirs(input_ids=tokens, attention_mask=seen.long()).last_hidden_state
    torch.testing.assert_close(model(tokens)[seen], expected[seen], rtol=0, atol=2e-5)
    assert expected[seen].abs().mean() > 0.1


@torch.no_grad()
def test_padding_may_be_on_either_side() -> None:
    model = random_model(CONFIG).double()
    tokens = torch.tensor([[5, 6, 7, PADDING, PADDING]])
    features = model(tokens)[:, :3]
    torch.testing.assert_close(model(tokens.roll(2, 1))[:, 2:], features, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(tokens[:, :3]), features, rtol=0, atol=1e-12)


def test_distance_buckets_widen_as_in_the_paper() -> None:
    distance = torch.arange(-200, 201)
    buckets = distance_buckets(distance, CONFIG)
    before, after = buckets[:200].flip(0), buckets[201:]
    assert torch.equal(after, before + 16)
    # Eight exact buckets, then wider ones; the last one is for 128 and more (and, by rounding, slightly less).
    assert before[:7].tolist() == list(range(1, 8))
    assert (before.diff() >= 0).all()
    assert before[127:].unique().tolist() == [15]
    assert int(buckets[200]) == 0


def test_words_and_bytes_get_ids_and_an_end_token() -> None:
    words, by_bytes = SmallTokenizer(WORDS), SmallTokenizer(CONFIG)
    assert words("  A three!\n") == [3, 4, 5, 1]
    assert words("a wombat") == [3, 2, 1]
    assert words("") == [1]
    assert by_bytes("aé") == [3 + 97, 3 + 0xC3, 3 + 0xA9, 1]
    assert by_bytes("") == [1]
    assert pad_tokens([[3, 1], [3, 4, 5, 6, 1]], 3).tolist() == [[3, 1, 0], [3, 4, 1]]


def test_a_caption_has_the_same_features_in_any_batch() -> None:
    encoder = encoder_of(random_model(CONFIG), max_tokens=120)
    captions = ["a cat", "", 'a "quoted" 🦘', "قطة", "x" * 10_000]
    together = encoder.encode(captions)
    assert [each.num_tokens for each in together] == [6, 1, 16, 7, 10_001]
    assert [len(each.features_TE) for each in together] == [6, 1, 16, 7, 120]
    for caption, one in zip(captions, together, strict=True):
        (alone,) = encoder.encode([caption])
        assert alone.features_TE.dtype == torch.float16
        torch.testing.assert_close(alone.features_TE, one.features_TE, rtol=2e-3, atol=2e-3)


def test_refuses_features_that_float16_cannot_hold() -> None:
    model = random_model(CONFIG)
    torch.nn.init.constant_(model.encoder.final_layer_norm.weight, 1e6)
    with pytest.raises(Failed, match="float16 cannot hold"):
        encoder_of(model, max_tokens=8).encode(["a cat"])


def test_a_saved_encoder_loads(tmp_path: Path) -> None:
    model, path = random_model(WORDS), tmp_path / "encoder.safetensors"
    save_encoder(model, path, {"seed": 0}, torch.float32)
    loaded = SmallEncoder.load(str(path), max_tokens=4, dtype=torch.float32, device="cpu")
    assert describe(str(path)) == (loaded.sha256, 8)
    (actual,) = loaded.encode(["a three"])
    (expected,) = encoder_of(model, 4).encode(["a three"])
    assert torch.equal(actual.features_TE, expected.features_TE)


def test_the_random_encoder_is_deterministic() -> None:
    first, second = tiny_random(64).state_dict(), tiny_random(64).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    one, other = SmallEncoder.load("tiny-random/64", max_tokens=9, dtype=torch.float32, device="cpu").encode(
        ["a cat", "a dog"]
    )
    assert (one.features_TE - other.features_TE).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny-random/wide", "the size of a feature"),
        ("missing.safetensors", "there is no file missing.safetensors"),
        ("other.safetensors", r"other\.safetensors is not a text encoder of tokenleap"),
    ],
)
def test_refuses_other_encoders(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.safetensors").write_bytes(b"not an encoder")
    with pytest.raises(Refused, match=message):
        describe(name)


def test_one_encoder_is_embedded() -> None:
    assert embedded_names() == ("digits",)
