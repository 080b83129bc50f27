"""Features of captions: encoded once, cached in files and padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from generate_pairs.text import feature_store as features
from generate_pairs.text.base import Encoded, TextEncoder
from generate_pairs.text.feature_store import BLOCK_SIZE, EncoderSpec, TextFeatures
from shards.core.errors import Failed, Refused
from shards.storage.files import commit_bytes, list_names
from shards.storage.paths import location

pytestmark = pytest.mark.quick

SPEC = EncoderSpec("letters", "0" * 64, "float32", max_tokens=5, dim=3)


class Letters(TextEncoder):
    """One token per letter: (code point, position, number of letters)."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, captions: Sequence[str]) -> list[Encoded]:
        self.seen += captions
        return [Encoded(expected(caption), len(caption) + 1) for caption in captions]


def expected(caption: str) -> torch.Tensor:
    letters = [*map(ord, caption), 0][:5]
    rows = [(letter % 1000, place, len(caption)) for place, letter in enumerate(letters)]
    return torch.tensor(rows, dtype=torch.float16)


def texts(folder: Path, captions: Sequence[str], encoder: TextEncoder | None) -> TextFeatures:
    def open_encoder(spec: EncoderSpec) -> TextEncoder:
        assert encoder is not None, "all features should be cached"
        return encoder

    return TextFeatures(folder, captions, SPEC, open_encoder)


CAPTIONS = ("a cat", "", "emoji 🦘", "a cat", "קטע", "x" * 10_000)


@pytest.mark.parametrize("dense_bytes", [0, 2**26])
def test_pads_on_the_left_and_encodes_each_caption_once(
    tmp_path: Path, dense_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "DENSE_BYTES", dense_bytes)
    encoder = Letters()
    labels = torch.tensor([1, 4, 3, 0, 5, 1])
    for store in (texts(tmp_path, CAPTIONS, encoder), texts(tmp_path, CAPTIONS, None)):
        condition = store(labels)
        assert condition.features_BTE.shape == (6, 5, 3)
        for row, seen, label in zip(*condition, labels.tolist(), strict=True):
            features_TE = expected(CAPTIONS[label])
            assert torch.equal(row[seen], features_TE)
            assert seen.tolist() == [False] * (5 - len(features_TE)) + [True] * len(features_TE)
            assert not row[~seen].any()
        # "a cat" twice, the emoji and the long caption are cut.
        assert store.num_cut() == 4
    assert encoder.seen == ["a cat", "", "emoji 🦘", "קטע", "x" * 10_000]


def test_a_batch_is_padded_to_its_longest_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "DENSE_BYTES", 0)
    store = texts(tmp_path, CAPTIONS, Letters())
    assert store(torch.tensor([1])).seen_BT.tolist() == [[True]]
    assert store(torch.tensor([1, 4])).seen_BT.tolist() == [[False] * 3 + [True], [True] * 4]


def test_blocks_are_encoded_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "DENSE_BYTES", 0)
    captions = [f"caption {number}" for number in range(2 * BLOCK_SIZE + 10)]
    encoder = Letters()
    store = texts(tmp_path, captions, encoder)
    store(torch.tensor([2 * BLOCK_SIZE + 3]))
    assert encoder.seen == captions[2 * BLOCK_SIZE :]
    store.prepare(np.arange(BLOCK_SIZE - 1, BLOCK_SIZE + 1))
    assert encoder.seen == [*captions[2 * BLOCK_SIZE :], *captions[: 2 * BLOCK_SIZE]]
    assert len(list(tmp_path.iterdir())) == 3


def test_other_captions_or_another_encoder_have_other_files(tmp_path: Path) -> None:
    texts(tmp_path, ["a"], Letters())(torch.tensor([0]))
    encoder = Letters()
    texts(tmp_path, ["b"], encoder)(torch.tensor([0]))
    other = EncoderSpec("elsewhere", "1" * 64, "float32", 5, 3)
    TextFeatures(tmp_path, ["a"], other, lambda _: encoder)(torch.tensor([0]))
    moved = EncoderSpec("elsewhere", "0" * 64, "float32", 5, 3)
    TextFeatures(tmp_path, ["a"], moved, lambda _: pytest.fail("encodes"))(torch.tensor([0]))
    assert encoder.seen == ["b", "a"]


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9, 0.999])
def test_a_damaged_file_is_reported(tmp_path: Path, place: float) -> None:
    texts(tmp_path, ["a cat", "a dog"] * 20, Letters())(torch.tensor([0]))
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(Failed, match=f"{path.name} is damaged"):
        texts(tmp_path, ["a cat", "a dog"] * 20, None)(torch.tensor([0]))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(Failed, match="delete it, and it is computed again"):
        texts(tmp_path, ["a cat", "a dog"] * 20, None)(torch.tensor([0]))


def test_of_two_concurrent_writers_the_first_wins(tmp_path: Path) -> None:
    class Rival(Letters):
        def encode(self, captions: Sequence[str]) -> list[Encoded]:
            texts(tmp_path, ["a"], Letters())(torch.tensor([0]))
            return [Encoded(torch.ones(1, 3, dtype=torch.float16), 1) for _ in captions]

    condition = texts(tmp_path, ["a"], Rival())(torch.tensor([0]))
    assert torch.equal(condition.features_BTE[0], expected("a"))


def test_the_checksum_covers_the_token_counts(tmp_path: Path) -> None:
    texts(tmp_path, ["a", "abc"], Letters())(torch.tensor([0]))
    (path,) = tmp_path.iterdir()
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    assert tensors["num_tokens"].tolist() == [2, 4]
    save_file(tensors | {"num_tokens": torch.tensor([4, 2])}, path, metadata)
    with pytest.raises(Failed, match="its checksum differs"):
        texts(tmp_path, ["a", "abc"], None)(torch.tensor([0]))


def test_cut_captions_are_counted_without_reading_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts(tmp_path, CAPTIONS, Letters())(torch.tensor([0]))
    monkeypatch.setattr(features, "_checksum", lambda *_: pytest.fail("features are read"))
    assert texts(tmp_path, CAPTIONS, None).num_cut() == 4
    assert texts(tmp_path / "nothing yet", CAPTIONS, None).num_cut() == 0


def test_features_are_written_to_a_url_even_if_this_host_has_them(home: Path) -> None:
    pytest.importorskip("upath")
    texts(features.default_folder(), ["a"], Letters())(torch.tensor([0]))
    remote = location(f"memory://{home.name}/text_features")
    encoder = Letters()
    texts(remote, ["a"], encoder)(torch.tensor([0]))
    assert encoder.seen == ["a"]
    assert len(list_names(remote, ".safetensors")) == 1
    # Cached on this host after reading; cut captions are not counted at a URL.
    assert torch.equal(texts(remote, ["a"], None)(torch.tensor([0])).features_BTE[0], expected("a"))
    assert texts(remote, ["a"], None).num_cut() is None


def test_features_of_a_read_only_data_set_are_cached_on_this_host(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit(path: Path, *arguments: object, **options: object) -> bool:
        if tmp_path in path.parents and home not in path.parents:
            raise Refused(f"cannot write {path}")
        return bool(commit_bytes(path, *arguments, **options))  # type: ignore[arg-type]

    monkeypatch.setattr(features, "commit_bytes", commit)
    pairs = tmp_path / "pairs"
    assert torch.equal(texts(pairs, ["a"], Letters())(torch.tensor([0])).features_BTE[0], expected("a"))
    assert not pairs.exists()
    texts(pairs, ["a"], None)(torch.tensor([0]))
    # Another data set does not use this cache.
    encoder = Letters()
    texts(tmp_path / "others", ["a"], encoder)(torch.tensor([0]))
    assert encoder.seen == ["a"]
