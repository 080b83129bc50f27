"""Folders of published models as transformers reads them: where they are, what they are, and their sha256."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from generate_pairs.teachers.importing.hub import HUB, hub_folder
from shards.core.errors import Refused
from shards.storage.files import read_bytes, sha256_bytes, sha256_file
from shards.storage.paths import expanded

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
    """The folder of a model, brought here if it is `hf://OWNER/REPOSITORY[@REVISION]`.

    Args:
        key: the setting that names it, for messages.
        name: folder or repository.

    Raises:
        Refused: there is no such folder, or it holds no model.
        Failed: the download failed.
    """
    if name.startswith(HUB):
        folder = hub_folder(name, (CONFIG_FILE, *TOKENIZER_FILES, *WEIGHTS))
    else:
        folder = expanded(key, name)
        if not folder.is_dir():
            raise Refused(
                f"{key}: there is no folder {folder}; a repository is written {HUB}OWNER/REPOSITORY"
            )
    if not (folder / CONFIG_FILE).is_file():
        raise Refused(f"{key}: {folder} holds no model: it has no {CONFIG_FILE}")
    if not _found(folder, WEIGHTS):
        more = ", only pickled ones, which are not opened here" if _found(folder, UNSAFE_WEIGHTS) else ""
        raise Refused(
            f"{key}: {folder} holds no weights as safetensors{more}. transformers writes them: "
            "`T5EncoderModel.from_pretrained(...).save_pretrained(...)`, or the model's own class"
        )
    return folder


def model_config(
    key: str, folder: Path, model_types: Sequence[str], sizes: Sequence[str] = ()
) -> dict[str, Any]:
    """What a folder's config.json says.

    Raises:
        Refused: it is damaged, of another kind of model than `model_types`, or lacks one of the `sizes`.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(read_bytes(path))
    except ValueError as error:
        raise Refused(f"{key}: {path} is not JSON: {error}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in model_types:
        raise Refused(
            f"{key}: {folder} holds a model of type {found!r}, not of {' or '.join(map(repr, model_types))}"
        )
    for size in sizes:
        if not isinstance(config.get(size), int):
            raise Refused(
                f"{key}: {path} says {config.get(size)!r} for {size}, which should be a whole number"
            )
    return dict(config)


def folder_sha256(folder: Path) -> str:
    """sha256 (hex) of all that determines what a model computes: of names and content of its files, in order."""
    files = _found(folder, (CONFIG_FILE, *TOKENIZER_FILES, *WEIGHTS))
    return sha256_bytes("".join(f"{path.name} {sha256_file(path)}\n" for path in files).encode())


@contextmanager
def quiet_transformers(key: str, name: str) -> Iterator[Any]:
    """transformers, saying nothing while the block lasts; what it finds wrong with a model is refused.

    Raises:
        Refused: it is not installed, or cannot read the model.
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
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise Refused(f"{key}: transformers cannot read {name}: {first}") from error
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def refuse_misfits(key: str, name: str, info: dict[str, Any], ignored: Sequence[str] = ()) -> None:
    """Confirms that a model's weights were all there, and none of another shape.

    Args:
        key: the setting that names it.
        name: of the model.
        info: `output_loading_info` of transformers.
        ignored: beginnings of names that a file may hold besides.

    Raises:
        Refused: names the first ones that do not fit.
    """
    unknown = [one for one in info["unexpected_keys"] if not one.startswith(tuple(ignored))]
    wrong = [
        *(f"missing {one}" for one in sorted(info["missing_keys"])),
        *(
            f"another shape of {one[0] if isinstance(one, tuple) else one}"
            for one in sorted(info["mismatched_keys"])
        ),
        *(f"unknown {one}" for one in sorted(unknown)),
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise Refused(
            f"{key}: the weights of {name} do not fit its {CONFIG_FILE}: {'; '.join(wrong[:5])}{more}"
        )


def _found(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
