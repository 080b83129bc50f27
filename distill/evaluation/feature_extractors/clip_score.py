"""CLIPScore, how well images fit captions (Hessel et al. 2021, arXiv 2104.08718); optional, through transformers.

A score is 100 times the cosine between a CLIP's features of an image and of its caption, at least 0, as in torchmetrics.
The paper's weight is 2.5: its scores are these divided by 40. The lower bound applies to each pair, as in the paper;
torchmetrics applies it to the mean. Scores of different CLIPs, or of different ways of resizing, cannot be compared.

The paper puts "A photo depicts" before captions; this module does not. Captions are truncated to the text model's maximum
length and keep the end-of-text token, as in OpenAI's `clip.tokenize(truncate=True)`. torchmetrics cuts that token off,
although the model takes its features there (https://github.com/Lightning-AI/torchmetrics/issues/2883). Only evaluation
imports this module, never the trainer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from distill.images import byte_images
from generate_pairs.text.pretrained import (
    folder_sha256,
    model_config,
    pretrained_folder,
    quiet_transformers,
    refuse_misfits,
)
from shards.core.errors import Refused
from shards.storage.files import read_bytes

KEY = "evaluation.clip"
MODEL_TYPES = ("clip",)
PREPROCESSING_FILE = "preprocessor_config.json"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Files of a tokenizer, one set or the other; without them transformers 5 silently creates an empty tokenizer."""
COUNTS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""Tensors 0, 1, 2, ... in older files, for example OpenAI's; they are never used."""
LAST_TOKEN = 2
"""This `eos_token_id` in config.json means that the end-of-text token is the one with the highest index."""
BATCH_SIZE = 50
"""Images in a batch of the model."""


def refuse_missing(name: str) -> Path:
    """The folder of a CLIP; its files are inspected, and no weights are loaded. Raises as `ClipScore.load`."""
    folder = pretrained_folder(KEY, name)
    model_config(KEY, folder, MODEL_TYPES)
    _preprocessing(folder)
    if not any(all((folder / file).is_file() for file in files) for files in TOKENIZERS):
        raise Refused(f"{KEY}: {folder} holds no tokenizer: neither tokenizer.json, nor vocab.json and merges.txt")
    if find_spec("transformers") is None:
        raise Refused(f"{KEY}: {name} needs transformers: pip install '.[text]'")
    return folder


class ClipScore:
    """A CLIP with its own tokenizer, its own preprocessing of PIL images, and the sha256 of its files."""

    def __init__(self, sha256: str, model: Any, tokenizer: Any, processor: Any) -> None:
        self.sha256 = sha256
        self._model = model
        self._tokenizer = tokenizer
        self._processor = processor

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu") -> Self:
        """Load a CLIP in float32 from a folder, or `hf://OWNER/REPOSITORY[@REVISION]` on the Hugging Face Hub.

        Raises:
            Refused: it does not exist, it is no CLIP, its files do not fit together, or transformers is not installed.
            Failed: the download failed.
        """
        folder = refuse_missing(name)
        preprocessing = _preprocessing(folder)
        with quiet_transformers(KEY, name) as transformers:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            # The class that resizes with PIL, as OpenAI's code does; where the first name exists, the second is that of a
            # class that needs torchvision.
            by_pil = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
            processor = by_pil.from_dict(preprocessing)
            model, info = transformers.CLIPModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                # `refuse_misfits` below raises a clearer error.
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            pixels_B3HW = _preprocess(processor, [Image.new("RGB", (2, 3))])
        refuse_misfits(KEY, name, info, COUNTS)
        _refuse_other_parts(name, model.config, tokenizer, pixels_B3HW)
        model = model.to(device).eval().requires_grad_(False)
        return cls(folder_sha256(folder), model, tokenizer, processor)

    def scores(self, images_BIHW: Tensor, captions: Sequence[str]) -> Tensor:
        """The score of each image with the caption of the same index, (B,) float64 on the CPU, 0 to 100.

        Images are rounded to 8 bits a channel, as files store them; a grey channel is repeated three times. The score of
        an image that contains NaN is NaN.

        Images are (B, 1 or 3, height, width) in [0, 1]; values outside are clamped.

        Raises:
            ValueError: no images, another number of channels, or another number of captions.
        """
        if len(images_BIHW) != len(captions):
            raise ValueError(f"{len(images_BIHW)} images need as many captions, got {len(captions)}")
        pixels = byte_images(images_BIHW.nan_to_num(0.0, 1.0, 0.0))
        pictures = [Image.fromarray(image.numpy()).convert("RGB") for image in pixels]
        cosines = [
            self._cosines(pictures[first : first + BATCH_SIZE], captions[first : first + BATCH_SIZE])
            for first in range(0, len(pictures), BATCH_SIZE)
        ]
        has_nan_B = images_BIHW.isnan().flatten(1).any(1).cpu()
        return (100.0 * torch.cat(cosines).clamp(0.0, 1.0)).masked_fill(has_nan_B, torch.nan)

    @torch.inference_mode()
    def _cosines(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
        device = self._model.device
        tokens = self._tokenizer(
            list(captions),
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
        of_images = self._model.get_image_features(pixel_values=_preprocess(self._processor, pictures).to(device))
        of_captions = self._model.get_text_features(
            input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
        )
        return F.cosine_similarity(_features(of_images), _features(of_captions), dim=1)


def _features(output: Any) -> Tensor:
    """Features (B, E) in float64; transformers 4 returns them as a tensor, transformers 5 inside an output object."""
    features_BE = output if isinstance(output, Tensor) else output.pooler_output
    return features_BE.double().cpu()


def _preprocess(processor: Any, pictures: Sequence[Image.Image]) -> Tensor:
    """PIL images to the model's input (B, 3, height, width)."""
    # Without input_data_format, transformers 4 takes the rows of an image of three rows for channels.
    inputs = processor(list(pictures), input_data_format="channels_last", return_tensors="pt")
    return inputs["pixel_values"].float()


def _preprocessing(folder: Path) -> dict[str, Any]:
    """The settings of the image preprocessing in a folder.

    Raises:
        Refused: the file is missing or damaged, or it is for another model than a CLIP.
    """
    path = folder / PREPROCESSING_FILE
    if not path.is_file():
        raise Refused(f"{KEY}: {folder} does not define how images are preprocessed: it has no {PREPROCESSING_FILE}")
    try:
        content = json.loads(read_bytes(path))
    except ValueError as error:
        raise Refused(f"{KEY}: {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise Refused(f"{KEY}: {path} holds no settings")
    # Older files use the second key.
    kind = content.get("image_processor_type") or content.get("feature_extractor_type") or "CLIP"
    if not str(kind).startswith("CLIP"):
        raise Refused(f"{KEY}: {path} is for {kind}, not for a CLIP")
    return content


def _refuse_other_parts(name: str, config: Any, tokenizer: Any, pixels_B3HW: Tensor) -> None:
    """Check that a tokenizer and a preprocessed image fit the model of a name, with this config.

    The tokenizer's end-of-text token must be the one where the model takes its features.

    Raises:
        Refused: they belong to another model.
    """
    text, side = config.text_config, config.vision_config.image_size
    last = max(tokenizer.get_vocab().values())
    if last >= text.vocab_size:
        raise Refused(f"{KEY}: the tokenizer of {name} has token {last}, its text model {text.vocab_size} tokens")
    end = last if text.eos_token_id == LAST_TOKEN else text.eos_token_id
    if tokenizer.eos_token_id != end:
        raise Refused(
            f"{KEY}: texts end with token {tokenizer.eos_token_id} in the tokenizer of {name}, "
            f"but with {end} in its config.json"
        )
    if pixels_B3HW.shape[1:] != (3, side, side):
        raise Refused(
            f"{KEY}: with {PREPROCESSING_FILE} of {name} an image becomes {tuple(pixels_B3HW.shape[1:])}, "
            f"but its model takes {(3, side, side)}"
        )
