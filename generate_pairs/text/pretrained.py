"""Folders of published models in the layout of transformers: finds them, checks them and computes their sha256."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from generate_pairs.teachers.importing.hub import HUB, hub_folder
from shards.core.errors import Refused, join_first
from shards.storage.files import read_bytes, sha256_bytes, sha256_file
from shards.storage.paths import expand_home

CONFIG_FILE = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
)
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
UNSAFE_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def pretrained_folder(key: str, name: str) -> Path:
    """The folder of a model, downloaded if the name is `hf://OWNER/REPOSITORY[@REVISION]`; `key` names the setting.

    Raises:
        Refused: the folder is missing, or contains no model.
        Failed: the download failed.
    """
    if name.startswith(HUB):
        folder = hub_folder(name, (CONFIG_FILE, *TOKENIZER_FILES, *WEIGHTS))
    else:
        folder = expand_home(key, name)
        if not folder.is_dir():
            raise Refused(f"{key}: there is no folder {folder}; a repository needs the form {HUB}OWNER/REPOSITORY")
    if not (folder / CONFIG_FILE).is_file():
        raise Refused(f"{key}: {folder} holds no model: it has no {CONFIG_FILE}")
    if not _matching_files(folder, WEIGHTS):
        pickled = ", only pickled ones, which are unsafe to load" if _matching_files(folder, UNSAFE_WEIGHTS) else ""
        raise Refused(
            f"{key}: {folder} holds no weights as safetensors{pickled}. Write them with transformers: "
            "`T5EncoderModel.from_pretrained(...).save_pretrained(...)`, or the model's own class"
        )
    return folder


def model_config(key: str, folder: Path, model_types: Sequence[str], sizes: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
        Refused: it is damaged, its model_type is not in `model_types`, or one of the `sizes` is not an integer.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(read_bytes(path))
    except ValueError as error:
        raise Refused(f"{key}: {path} is not JSON: {error}") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in model_types:
        raise Refused(
            f"{key}: {folder} holds a model of type {model_type!r}, not of {' or '.join(map(repr, model_types))}"
        )
    for size in sizes:
        if not isinstance(config.get(size), int):
            raise Refused(f"{key}: {path} has {config.get(size)!r} for {size}, which should be a whole number")
    return dict(config)


def folder_sha256(folder: Path) -> str:
    """sha256 (hex) of the names and contents of all files that determine a model's output, in order."""
    files = _matching_files(folder, (CONFIG_FILE, *TOKENIZER_FILES, *WEIGHTS))
    return sha256_bytes("".join(f"{path.name} {sha256_file(path)}\n" for path in files).encode())


@contextmanager
def quiet_transformers(key: str, name: str) -> Iterator[Any]:
    """The module transformers, with its messages disabled for the duration of the block.

    Raises:
        Refused: transformers is not installed, or cannot read the model.
    """
    try:
        import transformers
    except ImportError as error:
        raise Refused(f"{key}: {name} needs transformers: pip install '.[text]'") from error
    logging = transformers.utils.logging
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise Refused(f"{key}: transformers cannot read {name}: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def refuse_misfits(key: str, name: str, info: dict[str, Any], ignored: Sequence[str] = ()) -> None:
    """Check that a model's files contained exactly its weights, with the right shapes.

    Args:
        info: `output_loading_info` of transformers.
        ignored: prefixes of additional tensors that are allowed.

    Raises:
        Refused: a tensor is missing, unknown or has another shape; the message names the first five.
    """
    unknown = [tensor for tensor in info["unexpected_keys"] if not tensor.startswith(tuple(ignored))]
    wrong = [
        *(f"missing {tensor}" for tensor in sorted(info["missing_keys"])),
        *(
            f"another shape of {tensor[0] if isinstance(tensor, tuple) else tensor}"
            for tensor in sorted(info["mismatched_keys"])
        ),
        *(f"unknown {tensor}" for tensor in sorted(unknown)),
    ]
    if wrong:
        raise Refused(f"{key}: the weights of {name} do not fit its {CONFIG_FILE}: {join_first(wrong)}")


def _matching_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
