"""Features of captions: each distinct caption is encoded once, and the features are cached in files.

Distinct captions are cut into blocks in the order of their first appearance. A block is one safetensors file, named by
the hash of its captions and of the encoder, so a file with the name has the right features. Only real tokens are
stored: 2 T E bytes for a caption of T tokens, where T5-XL's padded features would need 491 kB.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from generate_pairs.teachers.base import TextCondition, Texts
from generate_pairs.text.base import Encoded, TextEncoder
from shards.core.errors import Failed, Refused
from shards.core.host import home_folder
from shards.storage.files import commit_bytes, read_each, sha256_bytes, xxh3_bytes
from shards.storage.paths import Location

BLOCK_SIZE = 250
"""Captions in a file: four files for a shard of 1,000 pairs."""
ENCODER_BATCH_SIZE = 50
DENSE_BYTES = 2**26
"""If all padded features need at most this many bytes, they are kept in the device's memory."""
OPEN_BLOCKS = 1_024
FOLDER = "text_features"
_CHECKSUM_KEY = "xxh3_128"


@dataclass(frozen=True)
class EncoderSpec:
    """Everything that determines the features of a caption, of size `dim`; and `name`, the encoder's location."""

    name: str
    sha256: str
    dtype: str
    max_tokens: int
    dim: int


class TextFeatures(Texts):
    """The features of a list of captions, by index; missing ones are computed and cached."""

    def __init__(
        self,
        folder: Location,
        captions: Sequence[str],
        spec: EncoderSpec,
        open_encoder: Callable[[EncoderSpec], TextEncoder],
    ) -> None:
        """The folder of the files is created with the first file; `open_encoder` is called for the first missing one."""
        self.captions = captions
        self.spec = spec
        self._folder = folder
        self._open_encoder = cache(open_encoder)
        indices: dict[str, int] = {}
        self._distinct_N = np.fromiter(
            (indices.setdefault(caption, len(indices)) for caption in captions), np.int64, len(captions)
        )
        self._texts = tuple(indices)
        self._blocks: dict[int, _Block] = {}
        self._dense: dict[torch.device, tuple[Tensor, TextCondition]] = {}
        # Threads that share a batch call this object concurrently.
        self._lock = Lock()

    def __call__(self, labels_B: Tensor) -> TextCondition:
        """The features of the captions with these indices; see the base class.

        Raises:
            Failed: a file is damaged, the disk is full, or a feature does not fit float16.
            Refused: features are missing and the encoder is not on this machine.
        """
        device = labels_B.device
        if 2 * len(self._texts) * self.spec.max_tokens * self.spec.dim > DENSE_BYTES:
            return _to_device(self._padded_features(self._distinct_N[labels_B.cpu().numpy()]), device)
        if device not in self._dense:
            dense = _to_device(self._padded_features(np.arange(len(self._texts))), device)
            self._dense[device] = torch.from_numpy(self._distinct_N).to(device), dense
        distinct_N, (features_NTE, mask_NT) = self._dense[device]
        distinct_B = distinct_N[labels_B]
        return TextCondition(features_NTE[distinct_B], mask_NT[distinct_B])

    def prepare(self, labels: Sequence[int] | np.ndarray) -> None:
        """Compute and cache the missing features of these captions."""
        for block in np.unique(self._distinct_N[np.asarray(labels)] // BLOCK_SIZE).tolist():
            self._block(block)

    def num_cut(self) -> int | None:
        """The number of encoded captions that were cut; a repeated caption counts each time.

        Features are not read. None if the folder is at a URL: all files would have to be downloaded.
        """
        if not isinstance(self._folder, Path):
            return None
        cut = np.zeros(len(self._texts), dtype=bool)
        for number in range(-(-len(self._texts) // BLOCK_SIZE)):
            path = self._folder / self._path(number).name
            if path.is_file():
                with _opened(path) as file:
                    uncut = file.get_tensor("num_tokens_before_cut").numpy()
                first = number * BLOCK_SIZE
                cut[first : first + len(uncut)] = uncut > self.spec.max_tokens
        return int(cut[self._distinct_N].sum())

    def _padded_features(self, distinct_B: np.ndarray) -> TextCondition:
        """The features of distinct captions, padded on the left to the longest."""
        block_B, place_B = np.divmod(distinct_B, BLOCK_SIZE)
        features = [self._block(block).of(place) for block, place in zip(block_B.tolist(), place_B.tolist(), strict=True)]
        longest = max(map(len, features))
        features_BTE = torch.zeros(len(features), longest, self.spec.dim, dtype=torch.float16)
        mask_BT = torch.zeros(len(features), longest, dtype=torch.bool)
        for row, features_TE in enumerate(features):
            features_BTE[row, longest - len(features_TE) :] = features_TE
            mask_BT[row, longest - len(features_TE) :] = True
        return TextCondition(features_BTE, mask_BT)

    def _block(self, number: int) -> _Block:
        with self._lock:
            # Put last: the first block is the one that was used the longest time ago.
            block = self._blocks.pop(number, None) or self._read(number) or self._encode(number)
            if len(self._blocks) >= OPEN_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[number] = block
            return block

    def _block_texts(self, number: int) -> Sequence[str]:
        return self._texts[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]

    def _path(self, number: int) -> Location:
        """The path of a block; its name depends only on the captions and the encoder."""
        determining = {key: value for key, value in asdict(self.spec).items() if key != "name"}
        content = json.dumps([determining, self._block_texts(number)], sort_keys=True)
        return self._folder / f"{sha256_bytes(content.encode())[:32]}.safetensors"

    def _copy(self, number: int) -> Path:
        """The path of this host's copy of a block, for a folder at a URL or one that is not writable."""
        return default_folder() / sha256_bytes(str(self._folder).encode())[:16] / self._path(number).name

    def _read(self, number: int) -> _Block | None:
        path, copy = self._path(number), self._copy(number)
        if isinstance(path, Path) and path.is_file():
            return _Block.read(path)
        if not copy.is_file():
            # Like shards, features at a URL are downloaded once.
            data = None if isinstance(path, Path) else next(iter(read_each([path])))
            if data is None:
                return None
            commit_bytes(copy, data)
        return _Block.read(copy)

    def _encode(self, number: int) -> _Block:
        """Encode a block and write its file, or this host's copy if the folder is read-only.

        If two processes do this at the same time, both continue with the first one's file.
        """
        encoder, texts = self._open_encoder(self.spec), self._block_texts(number)
        encoded: list[Encoded] = []
        for first in range(0, len(texts), ENCODER_BATCH_SIZE):
            encoded += encoder.encode(texts[first : first + ENCODER_BATCH_SIZE])
        data = _Block.to_bytes(encoded)
        try:
            commit_bytes(self._path(number), data, exclusive=True)
        except Refused:
            commit_bytes(self._copy(number), data, exclusive=True)
        block = self._read(number)
        if block is None:
            raise Failed(f"{self._path(number)} was deleted while it was being written; run the same command again")
        return block


@dataclass(frozen=True)
class _Block:
    """The concatenated features (N, E), float16, of the captions of one file, and the end of each caption's tokens."""

    features_NE: Tensor
    ends: npt.NDArray[np.int64]

    def of(self, place: int) -> Tensor:
        """The features (T, E) of one caption."""
        return self.features_NE[self.ends[place - 1] if place else 0 : self.ends[place]]

    @staticmethod
    def to_bytes(encoded: Sequence[Encoded]) -> bytes:
        """The file of encoded captions; equal features give equal bytes."""
        features_NE = torch.cat([each.features_TE for each in encoded])
        tensors = {
            "features": features_NE,
            "num_tokens": torch.tensor([len(each.features_TE) for each in encoded]),
            "num_tokens_before_cut": torch.tensor([each.num_tokens for each in encoded]),
        }
        return save(tensors, metadata={_CHECKSUM_KEY: _checksum(*tensors.values())})

    @classmethod
    def read(cls, path: Path) -> _Block:
        """A file's features, memory-mapped.

        Raises:
            Failed: the file is damaged.
        """
        with _opened(path) as file:
            features_NE = file.get_tensor("features")
            lengths, uncut = file.get_tensor("num_tokens"), file.get_tensor("num_tokens_before_cut")
            recorded = (file.metadata() or {}).get(_CHECKSUM_KEY)
        if recorded != _checksum(features_NE, lengths, uncut) or int(lengths.sum()) != len(features_NE):
            raise Failed(f"{path} is damaged: its checksum differs; delete it, and it is computed again")
        return cls(features_NE, lengths.cumsum(0).numpy())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file of a block; damage is `Failed`."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise Failed(f"{path} is damaged ({error}); delete it, and it is computed again") from error


def _checksum(*tensors: Tensor) -> str:
    """Checksums of the tensors' contents, one by one: together they may exceed the memory."""
    return " ".join(xxh3_bytes(tensor.view(torch.uint8).numpy().data) for tensor in tensors)


def _to_device(condition: TextCondition, device: torch.device) -> TextCondition:
    return TextCondition(*(tensor.to(device, non_blocking=True) for tensor in condition))


def default_folder() -> Path:
    """The folder for features outside of data sets: `${TOKENLEAP_HOME:-~/.cache/tokenleap}/text_features`."""
    return home_folder() / FOLDER
