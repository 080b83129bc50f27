"""What the text encoder makes of captions, computed once for each and kept in files.

Distinct captions are cut into blocks, in the order in which they first appear. A block is one safetensors file, named by
the hash of its captions and of the encoder, so whatever is found under the name is what was asked for. Only real tokens
are kept: 2 T E bytes of a caption of T tokens, where all that T5-XL is padded to would be 491 kB.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from generate_pairs.teachers.base import TextCondition, Texts
from generate_pairs.text.base import Encoded, TextEncoder
from shards.core.errors import Failed, Refused
from shards.storage.files import commit_bytes, read_each, sha256_bytes, xxh3_bytes
from shards.storage.paths import Location

BLOCK_SIZE = 250
"""Captions in a file: four of them go into a shard of 1,000 pairs."""
CAPTIONS_AT_ONCE = 50
DENSE_BYTES = 2**26
"""Features that take no more than this, padded, are kept in the memory of the device."""
OPEN_BLOCKS = 1_024
FOLDER = "text_features"
_SUFFIX = ".safetensors"
_SUM = "xxh3_128"


@dataclass(frozen=True)
class EncoderSpec:
    """All that determines the features of a caption.

    Attributes:
        name: where the encoder is, for people; it determines nothing.
        sha256: of its weights and its tokenizer.
        dtype: of its arithmetic.
        max_tokens: longer captions are cut.
        dim: E, numbers of a feature.
    """

    name: str
    sha256: str
    dtype: str
    max_tokens: int
    dim: int


class TextFeatures(Texts):
    """The features of a list of captions, by their numbers; what is missing is computed and kept."""

    def __init__(
        self,
        folder: Location,
        captions: Sequence[str],
        spec: EncoderSpec,
        open_encoder: Callable[[EncoderSpec], TextEncoder],
    ) -> None:
        """Features that lie in a folder, or will.

        Args:
            folder: of the files; made when the first one is written.
            captions: in the order of their numbers.
            spec: the encoder.
            open_encoder: loads it; called when the first caption is missing.
        """
        self.captions = captions
        self.spec = spec
        self._folder = folder
        self._open_encoder = open_encoder
        numbers: dict[str, int] = {}
        self._distinct_N = np.fromiter(
            (numbers.setdefault(caption, len(numbers)) for caption in captions), np.int64, len(captions)
        )
        self._texts = tuple(numbers)
        self._encoder: TextEncoder | None = None
        self._blocks: OrderedDict[int, _Block] = OrderedDict()
        self._dense: dict[torch.device, tuple[Tensor, TextCondition]] = {}
        # Threads that share a batch ask at the same time.
        self._lock = Lock()

    def __call__(self, labels_B: Tensor) -> TextCondition:
        """As in the base class.

        Raises:
            Failed: a file is damaged, the disk is full, or a feature does not fit float16.
            Refused: something is missing and the encoder is not here.
        """
        device = labels_B.device
        if 2 * len(self._texts) * self.spec.max_tokens * self.spec.dim > DENSE_BYTES:
            return _moved(self._features_of(self._distinct_N[labels_B.cpu().numpy()]), device)
        if device not in self._dense:
            dense = _moved(self._features_of(np.arange(len(self._texts))), device)
            self._dense[device] = torch.from_numpy(self._distinct_N).to(device), dense
        distinct_N, (features_NTE, seen_NT) = self._dense[device]
        distinct_B = distinct_N[labels_B]
        return TextCondition(features_NTE[distinct_B], seen_NT[distinct_B])

    def prepare(self, labels: Sequence[int] | np.ndarray) -> None:
        """Computes and keeps what is missing of these captions."""
        blocks = np.unique(self._distinct_N[np.asarray(labels)] // BLOCK_SIZE)
        for block in blocks.tolist():
            self._block(block)

    def num_cut(self) -> int | None:
        """Captions that were cut, of all that were encoded: each counts as often as it is in the list.

        Features are not read for it. None of a folder at a URL, from where all of them would have to come.
        """
        if not isinstance(self._folder, Path):
            return None
        cut = np.zeros(len(self._texts), dtype=bool)
        for number in range(-(-len(self._texts) // BLOCK_SIZE)):
            path = self._folder / self._path(number).name
            if path.is_file():
                first = number * BLOCK_SIZE
                uncut = _Block.uncut_of(path)
                cut[first : first + len(uncut)] = uncut > self.spec.max_tokens
        return int(cut[self._distinct_N].sum())

    def _features_of(self, distinct_B: np.ndarray) -> TextCondition:
        """Padded on the left to the longest."""
        block_B, place_B = np.divmod(distinct_B, BLOCK_SIZE)
        found = [
            self._block(block).of(place)
            for block, place in zip(block_B.tolist(), place_B.tolist(), strict=True)
        ]
        longest = max(map(len, found))
        features_BTE = torch.zeros(len(found), longest, self.spec.dim, dtype=torch.float16)
        seen_BT = torch.zeros(len(found), longest, dtype=torch.bool)
        for row, features_TE in enumerate(found):
            features_BTE[row, longest - len(features_TE) :] = features_TE
            seen_BT[row, longest - len(features_TE) :] = True
        return TextCondition(features_BTE, seen_BT)

    def _block(self, number: int) -> _Block:
        with self._lock:
            block = self._blocks.pop(number, None)
            if block is None:
                block = self._read(number) or self._make(number)
                if len(self._blocks) >= OPEN_BLOCKS:
                    self._blocks.popitem(last=False)
            self._blocks[number] = block
            return block

    def _path(self, number: int) -> Location:
        """Where a block lies: the same captions and the same encoder are always found under the same name."""
        texts = self._texts[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]
        determining = {key: value for key, value in asdict(self.spec).items() if key != "name"}
        content = json.dumps([determining, texts], sort_keys=True)
        return self._folder / f"{sha256_bytes(content.encode())[:32]}{_SUFFIX}"

    def _copy(self, number: int) -> Path:
        """Where this host keeps a block of a folder at a URL, or of one that cannot be written to."""
        return default_folder() / sha256_bytes(str(self._folder).encode())[:16] / self._path(number).name

    def _read(self, number: int) -> _Block | None:
        path, copy = self._path(number), self._copy(number)
        if isinstance(path, Path) and path.is_file():
            return _Block.read(path)
        if not copy.is_file():
            # Like shards, features at a URL are kept on this host once they were read.
            data = None if isinstance(path, Path) else next(iter(read_each([path])))
            if data is None:
                return None
            commit_bytes(copy, data)
        return _Block.read(copy)

    def _make(self, number: int) -> _Block:
        """Encodes a block and keeps it. Of two who do so at once the first one's stays, and both go on with that.

        Where it belongs to pairs that can only be read, this host keeps it for itself.
        """
        if self._encoder is None:
            self._encoder = self._open_encoder(self.spec)
        texts = self._texts[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]
        encoded = [
            each
            for first in range(0, len(texts), CAPTIONS_AT_ONCE)
            for each in self._encoder.encode(texts[first : first + CAPTIONS_AT_ONCE])
        ]
        data = _Block.to_bytes(encoded)
        try:
            commit_bytes(self._path(number), data, exclusive=True)
        except Refused:
            commit_bytes(self._copy(number), data, exclusive=True)
        block = self._read(number)
        if block is None:
            raise Failed(
                f"{self._path(number)} was taken away while it was written; run the same command again"
            )
        return block


@dataclass(frozen=True)
class _Block:
    """The features of some captions, one after the other, where they lie in their file.

    Attributes:
        features_NE: of all tokens.
        ends: where each caption's tokens end among them.
    """

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
        return save(tensors, metadata={_SUM: _sum_of(*tensors.values())})

    @classmethod
    def read(cls, path: Path) -> _Block:
        """A file's features, mapped into memory.

        Raises:
            Failed: it is not, byte for byte, what was written.
        """
        try:
            with safe_open(path, framework="pt") as file:
                features_NE = file.get_tensor("features")
                lengths, uncut = file.get_tensor("num_tokens"), file.get_tensor("num_tokens_before_cut")
                recorded = (file.metadata() or {}).get(_SUM)
        except (SafetensorError, OSError) as error:
            raise Failed(f"{path} is damaged ({error}); delete it, and it is computed again") from error
        if recorded != _sum_of(features_NE, lengths, uncut) or int(lengths.sum()) != len(features_NE):
            raise Failed(f"{path} is damaged: its checksum is another; delete it, and it is computed again")
        return cls(features_NE, lengths.cumsum(0).numpy())

    @staticmethod
    def uncut_of(path: Path) -> npt.NDArray[np.int64]:
        """Tokens that each caption of a file had before it was cut; the features are left alone.

        Raises:
            Failed: the file is damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                uncut: Tensor = file.get_tensor("num_tokens_before_cut")
        except (SafetensorError, OSError) as error:
            raise Failed(f"{path} is damaged ({error}); delete it, and it is computed again") from error
        return uncut.numpy()


def _sum_of(*tensors: Tensor) -> str:
    """Of the content of the tensors, each by itself: they may take more memory together than there is."""
    return " ".join(xxh3_bytes(tensor.view(torch.uint8).numpy().data) for tensor in tensors)


def _moved(condition: TextCondition, device: torch.device) -> TextCondition:
    return TextCondition(*(tensor.to(device, non_blocking=True) for tensor in condition))


def default_folder() -> Path:
    """Where this host keeps features of no data set: `${TOKENLEAP_HOME:-~/.cache/tokenleap}/text_features`."""
    return Path(os.environ.get("TOKENLEAP_HOME", "~/.cache/tokenleap")).expanduser() / FOLDER
