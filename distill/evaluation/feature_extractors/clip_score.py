"""How well images fit captions: CLIPScore (Hessel et al. 2021, arXiv 2104.08718), an extra, through transformers.

A score is 100 times the cosine between the features that a CLIP has of an image and of its caption, at least 0, as in
torchmetrics; the paper's weight is 2.5, and its scores are these divided by 40. The bound is each pair's, as there;
torchmetrics bounds the mean of all. Scores of two CLIPs, or of two ways of resizing, cannot be compared.

The paper puts "A photo depicts" before captions; nothing is put there here. Captions are cut to the tokens that the text
model has room for and keep the end of the text, as by OpenAI's own `clip.tokenize(truncate=True)`; torchmetrics cuts that
off, where the model looks for its features (https://github.com/Lightning-AI/torchmetrics/issues/2883). Imported for
evaluation only, never by the trainer.
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
"""Files of a tokenizer, the one or the other; without them transformers 5 makes one that knows no words, in silence."""
COUNTS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""0, 1, 2, ... in older files, OpenAI's among them; nothing reads them."""
LAST_TOKEN = 2
"""As `eos_token_id` of config.json: the end of the text is the token of the highest number, whichever that is."""
AT_ONCE = 50
"""Images that the model sees together."""


def refuse_missing(name: str) -> Path:
    """The folder of a CLIP, all of its parts looked at and nothing loaded. Raises as `ClipScore.load`."""
    folder = pretrained_folder(KEY, name)
    model_config(KEY, folder, MODEL_TYPES)
    _preprocessing(folder)
    if not any(all((folder / file).is_file() for file in files) for files in TOKENIZERS):
        raise Refused(
            f"{KEY}: {folder} holds no tokenizer: neither tokenizer.json, nor vocab.json and merges.txt"
        )
    if find_spec("transformers") is None:
        raise Refused(f"{KEY}: {name} needs transformers: pip install '.[text]'")
    return folder


class ClipScore:
    """A CLIP with its own tokenizer and its own way to make images ready.

    Args:
        name: of its folder or repository.
        sha256: of its files.
        model: transformers' CLIPModel.
        tokenizer: of its captions.
        processor: makes PIL images ready.
    """

    def __init__(self, name: str, sha256: str, model: Any, tokenizer: Any, processor: Any) -> None:
        self.name = name
        self.sha256 = sha256
        self._model = model
        self._tokenizer = tokenizer
        self._processor = processor

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu") -> Self:
        """A CLIP, in float32, from a folder, or from the Hugging Face Hub as `hf://OWNER/REPOSITORY[@REVISION]`.

        Args:
            name: which one.
            device: where it computes.

        Raises:
            Refused: there is none, it is no CLIP, its files do not fit each other, or transformers is not installed.
            Failed: the download failed.
        """
        folder = refuse_missing(name)
        preprocessing = _preprocessing(folder)
        with quiet_transformers(KEY, name) as transformers:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            processor = _pil_processor(transformers).from_dict(preprocessing)
            model, info = transformers.CLIPModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                # Told, and refused in our own words.
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            seen = _ready(processor, [Image.new("RGB", (2, 3))])
        refuse_misfits(KEY, name, info, COUNTS)
        _refuse_other_parts(name, model.config, tokenizer, seen)
        return cls(
            name, folder_sha256(folder), model.to(device).eval().requires_grad_(False), tokenizer, processor
        )

    def scores(self, images_BIHW: Tensor, captions: Sequence[str]) -> Tensor:
        """Each image's score with the caption of its place, (B,) in float64, 0 to 100, on the processor.

        Images are taken as files hold them, rounded to 8 bits a channel; grey ones are repeated in all three channels. An
        image with a NaN in it has the score NaN.

        Args:
            images_BIHW: (B, 1 or 3, height, width) in [0, 1]; what lies outside is clamped.
            captions: as many.

        Raises:
            ValueError: no images, another number of channels, or of captions.
        """
        if len(images_BIHW) != len(captions):
            raise ValueError(f"{len(images_BIHW)} images need as many captions, got {len(captions)}")
        pixels = byte_images(images_BIHW.nan_to_num(0.0, 1.0, 0.0))
        pictures = [Image.fromarray(image.numpy()).convert("RGB") for image in pixels]
        found = [
            self._cosines(pictures[first : first + AT_ONCE], captions[first : first + AT_ONCE])
            for first in range(0, len(pictures), AT_ONCE)
        ]
        broken_B = images_BIHW.isnan().flatten(1).any(1).cpu()
        return (100.0 * torch.cat(found).clamp(0.0, 1.0)).masked_fill(broken_B, torch.nan)

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
        of_images = self._model.get_image_features(pixel_values=_ready(self._processor, pictures).to(device))
        of_captions = self._model.get_text_features(
            input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
        )
        return F.cosine_similarity(_features(of_images), _features(of_captions), dim=1)


def _features(found: Any) -> Tensor:
    """Features (B, E) in float64, which transformers 5 returns inside of something else, transformers 4 as they are."""
    features_BE = found if isinstance(found, Tensor) else found.pooler_output
    return features_BE.double().cpu()


def _ready(processor: Any, pictures: Sequence[Image.Image]) -> Tensor:
    """What the model sees of PIL images, (B, 3, height, width)."""
    # Else transformers 4 takes images of three rows for channels.
    given = processor(list(pictures), input_data_format="channels_last", return_tensors="pt")
    return given["pixel_values"].float()


def _pil_processor(transformers: Any) -> Any:
    """transformers' class that resizes with PIL, as OpenAI's code does, whether torchvision is installed or not.

    Its name has a Pil at the end where transformers has given the name without to the one that needs torchvision.
    """
    return getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor


def _preprocessing(folder: Path) -> dict[str, Any]:
    """How images are made ready, as a file of the folder says.

    Raises:
        Refused: there is no such file, it is damaged, or it is meant for other code than CLIP's.
    """
    path = folder / PREPROCESSING_FILE
    if not path.is_file():
        raise Refused(
            f"{KEY}: {folder} does not say how images are made ready: it has no {PREPROCESSING_FILE}"
        )
    try:
        content = json.loads(read_bytes(path))
    except ValueError as error:
        raise Refused(f"{KEY}: {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise Refused(f"{KEY}: {path} holds no settings")
    # Older files have the second name.
    kind = content.get("image_processor_type") or content.get("feature_extractor_type") or "CLIP"
    if not str(kind).startswith("CLIP"):
        raise Refused(f"{KEY}: {path} is for {kind}, not for a CLIP")
    return content


def _refuse_other_parts(name: str, config: Any, tokenizer: Any, seen_B3HW: Tensor) -> None:
    """Confirms that a tokenizer and images made ready are those of a model.

    Args:
        name: of the model.
        config: of the model.
        tokenizer: its end of the text must be the one where the model looks for its features.
        seen_B3HW: an image made ready.

    Raises:
        Refused: they are of another model.
    """
    text, side = config.text_config, config.vision_config.image_size
    last = max(tokenizer.get_vocab().values())
    if last >= text.vocab_size:
        raise Refused(
            f"{KEY}: the tokenizer of {name} has token {last}, its text model {text.vocab_size} tokens"
        )
    end = last if text.eos_token_id == LAST_TOKEN else text.eos_token_id
    if tokenizer.eos_token_id != end:
        raise Refused(
            f"{KEY}: texts end with token {tokenizer.eos_token_id} by the tokenizer of {name}, "
            f"with {end} by its config.json"
        )
    if seen_B3HW.shape[1:] != (3, side, side):
        raise Refused(
            f"{KEY}: by {PREPROCESSING_FILE} of {name} an image becomes {tuple(seen_B3HW.shape[1:])}, "
            f"and its model sees {(3, side, side)}"
        )
