"""T5 through transformers: the features of LlamaGen's sampler, and refusals of unsuitable folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from generate_pairs.text.pretrained import folder_sha256
from generate_pairs.text.t5_encoder import T5Encoder, describe
from shards.core.errors import Failed, Refused

transformers = pytest.importorskip("transformers")

CAPTIONS = ["A photo of a cat ", "", 'a "quoted" 🦘', "قطة على سجادة", "two\nlines", "x" * 10_000]


WriteT5 = Callable[..., Path]


@pytest.fixture(scope="module")
def write_t5(text_models: ModuleType) -> WriteT5:
    return text_models.write_t5


@pytest.fixture(scope="module")
def folder(write_t5: WriteT5, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5"), 16)


def load(folder: Path, max_tokens: int = 120, dtype: torch.dtype = torch.float32) -> T5Encoder:
    return T5Encoder.load(str(folder), max_tokens=max_tokens, dtype=dtype, device="cpu")


@torch.no_grad()
def test_features_are_those_of_the_official_sampler(folder: Path) -> None:
    """The reference pads to 120 tokens and masks in transformers; the padding's features are dropped here."""
    model = transformers.T5EncoderModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(
        [caption.lower().strip() for caption in CAPTIONS],
        max_length=120,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    expected = model(**given).last_hidden_state
    encoded = load(folder).encode(CAPTIONS)
    assert [each.num_tokens for each in encoded] == [17, 1, 16, 25, 10, 10_001]
    for each, row, mask in zip(encoded, expected, given["attention_mask"].bool(), strict=True):
        assert each.features_TE.dtype == torch.float16
        torch.testing.assert_close(each.features_TE.float(), row[mask], rtol=1e-3, atol=2e-3)
    assert expected[given["attention_mask"].bool()].abs().mean() > 0.1


def test_a_caption_has_the_same_features_in_any_batch(folder: Path) -> None:
    encoder = load(folder)
    for caption, together in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        (alone,) = encoder.encode([caption])
        torch.testing.assert_close(alone.features_TE, together.features_TE, rtol=2e-3, atol=2e-3)


def test_longer_captions_are_cut_and_keep_their_end(folder: Path) -> None:
    (cut,) = load(folder, max_tokens=5).encode(["abcdefgh"])
    (short,) = load(folder).encode(["abcd"])
    assert (len(cut.features_TE), cut.num_tokens) == (5, 9)
    torch.testing.assert_close(cut.features_TE, short.features_TE, rtol=2e-3, atol=2e-3)


def test_computes_in_bfloat16(folder: Path) -> None:
    exact, rounded = (load(folder, dtype=dtype).encode(CAPTIONS[:1])[0] for dtype in (torch.float32, torch.bfloat16))
    difference = (exact.features_TE - rounded.features_TE).abs().max()
    assert 0 < difference < 0.1


def test_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(folder).encode(CAPTIONS)
    assert capfd.readouterr() == ("", "")


def test_the_decoder_of_a_complete_t5_is_ignored(write_t5: WriteT5, tmp_path: Path) -> None:
    (encoded,) = load(write_t5(tmp_path, 16, with_decoder=True)).encode(["a"])
    assert encoded.features_TE.shape[1] == 16


def test_refuses_features_that_float16_cannot_hold(write_t5: WriteT5, tmp_path: Path) -> None:
    folder = write_t5(tmp_path, 16)
    model = transformers.T5EncoderModel.from_pretrained(folder)
    torch.nn.init.constant_(model.encoder.final_layer_norm.weight, 1e7)
    model.save_pretrained(folder)
    with pytest.raises(Failed, match="features of 'a cat' that float16 cannot hold"):
        load(folder).encode(["a cat"])


def test_sha256_is_of_the_content_alone(folder: Path, copy: Path) -> None:
    assert describe(str(copy)) == describe(str(folder)) == (load(folder).sha256, 16)
    (copy / "README.md").write_text("more")
    assert folder_sha256(copy) == folder_sha256(folder)
    for name in ("model.safetensors", "config.json", "tokenizer_config.json"):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content + b" ")
        assert folder_sha256(copy) != folder_sha256(folder)
        (copy / name).write_bytes(content)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "holds a model of type 'bert', not of 't5'"),
        ({"num_layers": 2}, "do not fit its config.json: missing encoder.block.1"),
        ({"d_ff": 32}, r"another shape of encoder\.block\.0\.layer\.1\."),
        ({"d_model": None}, "for d_model, which should be a whole number"),
        ({"d_model": "x"}, "for d_model, which should be a whole number"),
    ],
)
def test_refuses_a_config_that_does_not_fit(copy: Path, changes: dict[str, object], message: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(Refused, match=message):
        load(copy)


def test_refuses_folders_of_something_else(write_t5: WriteT5, copy: Path, tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(Refused, match=message):
            load(folder, max_tokens=8)

    refused(tmp_path / "nowhere", r"captions\.encoder: there is no folder .*nowhere; a repository needs the form hf://")
    refused(tmp_path, "holds no model: it has no config.json")
    refused(write_t5(tmp_path / "fewer", 16, vocab_size=100), "the tokenizer in .*fewer does not match its model")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(copy, "transformers cannot read")
    weights.rename(copy / "pytorch_model.bin")
    refused(copy, "no weights as safetensors, only pickled ones")
    (copy / "pytorch_model.bin").rename(weights)
    (copy / "config.json").write_text("{")
    refused(copy, r"config\.json is not JSON")


def test_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(Refused, match=r"pip install '\.\[text\]'"):
        load(folder)


def test_a_folder_without_a_tokenizer_is_refused_when_planning(copy: Path) -> None:
    """A tokenizer added later would change the encoder's sha256, and thus the data set's fingerprint."""
    for name in ("tokenizer.json", "tokenizer_config.json", "spiece.model"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(Refused, match=f"{copy} holds no tokenizer: neither tokenizer.json nor spiece.model"):
        describe(str(copy))
    with pytest.raises(Refused, match="holds no tokenizer"):
        load(copy)
