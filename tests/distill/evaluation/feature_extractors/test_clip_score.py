"""CLIPScore against transformers' own processor and model and against torchmetrics, and the refusal of wrong folders.

The CLIP is a small random one: published weights are not available here.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.evaluation.feature_extractors.clip_score import ClipScore, refuse_missing
from generate_pairs.text.pretrained import folder_sha256
from shards.core.errors import Refused

transformers = pytest.importorskip("transformers")

WriteClip = Callable[..., Path]

CAPTIONS = [
    "A photo of a cat ",
    "",
    'a "quoted" 🦘',
    "قطة على سجادة",
    "two\nlines",
    "dog cat " * 1_250,
    "é è ﬁ",
    "cat",
]
CLOSE = {"rtol": 0.0, "atol": 1e-4}
"""Tolerance of scores from 0 to 100 for float32 rounding; differences of 2e-5 were measured."""


@pytest.fixture(scope="module")
def write_clip(text_models: ModuleType) -> WriteClip:
    return text_models.write_clip


@pytest.fixture(scope="module")
def folder(write_clip: WriteClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("openai"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipScore:
    return ClipScore.load(str(folder))


def made_images(channels: int, height: int, width: int) -> Tensor:
    """One image for each caption, with coarse and fine structure; pixels are not whole bytes."""
    generator = torch.Generator().manual_seed(2)
    tints = torch.rand(len(CAPTIONS), channels, 1, 1, generator=generator)
    coarse = torch.rand(len(CAPTIONS), channels, 3, 4, generator=generator)
    fine = torch.rand(len(CAPTIONS), channels, height, width, generator=generator)
    coarse = torch.nn.functional.interpolate(coarse, size=(height, width), mode="nearest")
    return 0.4 * tints + 0.4 * coarse + 0.2 * fine


@pytest.fixture
def images() -> Tensor:
    return made_images(3, 24, 40)


def pil_images(images: Tensor) -> list[Image.Image]:
    pixels = images.mul(255.0).round().to(torch.uint8)
    modes = {1: "L", 3: "RGB"}
    return [
        Image.frombytes(modes[len(each)], (each.shape[2], each.shape[1]), bytes(each.permute(1, 2, 0).flatten().tolist()))
        for each in pixels
    ]


def peer_of(folder: Path) -> tuple[Any, Any]:
    """transformers' processor, which resizes with PIL even if torchvision is installed, and its model."""
    by_pil = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor = transformers.CLIPProcessor(
        by_pil.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    )
    return processor, transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def peer_cosines(folder: Path, images: Sequence[Image.Image]) -> Tensor:
    """100 times the cosine of every image with every caption (images, captions): logits without their scale."""
    processor, model = peer_of(folder)
    given = processor(
        text=CAPTIONS, images=list(images), truncation=True, max_length=77, padding=True, return_tensors="pt"
    )
    return 100.0 * (model(**given).logits_per_image / model.logit_scale.exp()).double()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(24, 40), (41, 23), (16, 16), (7, 5)])
def test_scores_are_those_of_transformers(clip: ClipScore, folder: Path, channels: int, height: int, width: int) -> None:
    """Images that are enlarged, reduced, cropped at either side, or left unchanged."""
    images = made_images(channels, height, width)
    expected = peer_cosines(folder, pil_images(images))
    for turn in range(len(CAPTIONS)):
        found = clip.scores(images, CAPTIONS[turn:] + CAPTIONS[:turn])
        assert found.shape == (len(CAPTIONS),)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected.roll(-turn, 1).diagonal().clamp(min=0.0), **CLOSE)
    # Cosines have both signs, and no two images or captions have equal scores.
    assert expected.min() < -10
    assert expected.max() > 10
    assert min(expected.std(dim).min() for dim in (0, 1)) > 1


def test_scores_follow_the_published_formula(clip: ClipScore, folder: Path, images: Tensor) -> None:
    """2.5 max(cos, 0) of Hessel et al., bounded for each pair: 40 times it is the score."""
    processor, model = peer_of(folder)
    with torch.inference_mode():
        given = processor(text=CAPTIONS[:5], images=pil_images(images[:5]), padding=True, return_tensors="pt")
        found = model(**given)
        cosines = (found.image_embeds * found.text_embeds).sum(1).double()
    assert cosines.min() < 0 < cosines.max()
    torch.testing.assert_close(clip.scores(images[:5], CAPTIONS[:5]), 40 * 2.5 * cosines.clamp(min=0.0), **CLOSE)


def test_a_pair_has_the_same_score_in_any_batch_and_order(clip: ClipScore, images: Tensor) -> None:
    together = clip.scores(images, CAPTIONS)
    assert (together > 1).sum() > 3
    for place, caption in enumerate(CAPTIONS):
        torch.testing.assert_close(
            clip.scores(images[place : place + 1], [caption]), together[place : place + 1], **CLOSE
        )
    order = torch.randperm(len(CAPTIONS), generator=torch.Generator().manual_seed(0))
    shuffled = clip.scores(images[order], [CAPTIONS[place] for place in order.tolist()])
    torch.testing.assert_close(shuffled, together[order], **CLOSE)
    many = clip.scores(images.repeat(9, 1, 1, 1), CAPTIONS * 9)
    torch.testing.assert_close(many, together.repeat(9), **CLOSE)


def test_permuted_captions_permute_the_scores_of_one_image(clip: ClipScore) -> None:
    image = made_images(3, 24, 40)[3:4].expand(len(CAPTIONS), -1, -1, -1)
    scores = clip.scores(image, CAPTIONS)
    assert len(set(scores.tolist())) > 4
    torch.testing.assert_close(clip.scores(image, CAPTIONS[::-1]), scores.flip(0), **CLOSE)


def test_images_are_rounded_as_files_store_them(clip: ClipScore, images: Tensor) -> None:
    scores = clip.scores(images, CAPTIONS)
    assert torch.equal(clip.scores(images.mul(255.0).round().div(255.0), CAPTIONS), scores)
    assert torch.equal(clip.scores(images.double(), CAPTIONS), scores)
    assert not torch.equal(clip.scores(images.mul(255.0).floor().div(255.0), CAPTIONS), scores)
    outside = torch.where(images > 0.5, torch.inf, -1.0)
    assert torch.equal(clip.scores(outside, CAPTIONS), clip.scores((images > 0.5).float(), CAPTIONS))


def test_grey_images_score_like_three_equal_channels(clip: ClipScore, folder: Path, tmp_path: Path) -> None:
    images = made_images(1, 24, 40)
    scores = clip.scores(images, CAPTIONS)
    assert torch.equal(clip.scores(images.expand(-1, 3, -1, -1), CAPTIONS), scores)
    assert not torch.equal(clip.scores(made_images(3, 24, 40), CAPTIONS), scores)
    plain = ClipScore.load(str(changed(folder, tmp_path / "plain", {"do_convert_rgb": False})))
    assert torch.equal(plain.scores(images, CAPTIONS), scores)


def test_an_image_with_a_nan_has_no_score(clip: ClipScore, images: Tensor) -> None:
    scores = clip.scores(images, CAPTIONS)
    images[1, 2, 3, 4] = torch.nan
    scores[1] = torch.nan
    assert torch.equal(clip.scores(images, CAPTIONS).isnan(), scores.isnan())
    torch.testing.assert_close(clip.scores(images, CAPTIONS), scores, equal_nan=True, **CLOSE)


def test_long_captions_are_truncated_and_keep_their_end_token(clip: ClipScore) -> None:
    """75 words fit between the start and end tokens: the 75th changes the score, later words do not."""
    image = made_images(3, 24, 40)
    words = ["cat" if place % 3 else "dog" for place in range(200)]
    captions = [" ".join(words[:count]) for count in (74, 75, 76, 200)]
    for each in image:
        shorter, whole, *longer = clip.scores(each.expand(4, -1, -1, -1), captions).tolist()
        assert longer == pytest.approx([whole, whole], abs=1e-4)
        if whole > 1:
            assert abs(shorter - whole) > 1e-3
            break
    else:
        pytest.fail("no image has a score with this caption")


def test_a_model_of_fewer_tokens_truncates_earlier(write_clip: WriteClip, tmp_path: Path, images: Tensor) -> None:
    clip = ClipScore.load(str(write_clip(tmp_path, max_position_embeddings=8)))
    scores = clip.scores(images, ["cat dog cat dog cat dog"] * len(images))
    assert scores.max() > 1
    torch.testing.assert_close(clip.scores(images, ["cat dog " * 40] * len(images)), scores, **CLOSE)


def tensor_of(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found.pooler_output


@pytest.mark.parametrize("kept_in", ["tensor", "output"])
def test_features_of_both_transformers_versions_are_read(clip: ClipScore, kept_in: str, images: Tensor) -> None:
    """transformers 4 returns features, transformers 5 an output that contains them."""
    inner = clip._model

    def features(found: Any) -> Any:
        return tensor_of(found) if kept_in == "tensor" else SimpleNamespace(pooler_output=tensor_of(found))

    model = SimpleNamespace(
        device=inner.device,
        config=inner.config,
        get_image_features=lambda **given: features(inner.get_image_features(**given)),
        get_text_features=lambda **given: features(inner.get_text_features(**given)),
    )
    other = ClipScore("", model, clip._tokenizer, clip._processor)
    assert torch.equal(other.scores(images, CAPTIONS), clip.scores(images, CAPTIONS))


@pytest.mark.filterwarnings("ignore")
def test_the_mean_equals_that_of_torchmetrics(clip: ClipScore, folder: Path, images: Tensor) -> None:
    """Only short captions, as it cuts off the end of long ones; only positive scores, as it bounds their mean."""
    multimodal = pytest.importorskip("torchmetrics.multimodal.clip_score")
    processor, model = peer_of(folder)
    # torchmetrics 1.9 expects what transformers 4 returned.
    of_images, of_captions = model.get_image_features, model.get_text_features
    model.get_image_features = lambda *given, **more: tensor_of(of_images(*given, **more))
    model.get_text_features = lambda *given, **more: tensor_of(of_captions(*given, **more))
    pairs = [
        (image, caption) for image in images for caption in CAPTIONS[:5] if clip.scores(image[None], [caption]).item() > 1
    ]
    assert len(pairs) > 5
    theirs = multimodal.CLIPScore(model_name_or_path=lambda: (model, processor))
    theirs.update([image.mul(255.0).round().to(torch.uint8) for image, _ in pairs], [caption for _, caption in pairs])
    ours = clip.scores(torch.stack([image for image, _ in pairs]), [caption for _, caption in pairs])
    torch.testing.assert_close(theirs.compute().double(), ours.mean(), **CLOSE)


def test_scoring_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ClipScore.load(str(folder)).scores(made_images(3, 24, 40), CAPTIONS)
    assert capfd.readouterr() == ("", "")


def test_position_ids_in_older_files_are_ignored(folder: Path, clip: ClipScore, tmp_path: Path, images: Tensor) -> None:
    older = changed(folder, tmp_path / "older")
    weights = load_file(older / "model.safetensors")
    for part, count in (("text", 77), ("vision", 17)):
        weights[f"{part}_model.embeddings.position_ids"] = torch.arange(count)[None]
    save_file(weights, older / "model.safetensors", {"format": "pt"})
    assert torch.equal(ClipScore.load(str(older)).scores(images, CAPTIONS), clip.scores(images, CAPTIONS))


def test_newer_settings_give_the_same_scores(folder: Path, clip: ClipScore, tmp_path: Path, images: Tensor) -> None:
    """Named sizes, and the end-of-text token by its index."""
    newer = changed(
        folder,
        tmp_path / "newer",
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}}
        | {"feature_extractor_type": None, "crop_size": {"height": 16, "width": 16}},
    )
    config = json.loads((newer / "config.json").read_text())
    config["text_config"]["eos_token_id"] = config["text_config"]["vocab_size"] - 1
    (newer / "config.json").write_text(json.dumps(config))
    found = ClipScore.load(str(newer))
    torch.testing.assert_close(found.scores(images, CAPTIONS), clip.scores(images, CAPTIONS), **CLOSE)
    assert found.sha256 != clip.sha256


def test_a_clip_has_its_sha256(clip: ClipScore, folder: Path) -> None:
    assert clip.sha256 == folder_sha256(folder)


def test_wrong_numbers_and_shapes_are_refused(clip: ClipScore, images: Tensor) -> None:
    with pytest.raises(ValueError, match="8 images need as many captions, got 7"):
        clip.scores(images, CAPTIONS[:-1])
    for wrong, captions in ((images[:, :2], CAPTIONS), (images[:, 0], CAPTIONS), (images[:0], [])):
        with pytest.raises(ValueError, match="images must be"):
            clip.scores(wrong, captions)


def changed(folder: Path, to: Path, preprocessing: dict[str, object] | None = None) -> Path:
    """A copy of a folder with other preprocessing settings."""
    shutil.copytree(folder, to)
    path = to / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (preprocessing or {})))
    return to


def refused(name: Path | str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        ClipScore.load(str(name))


def test_folders_without_a_clip_are_refused(folder: Path, tmp_path: Path) -> None:
    refused(
        tmp_path / "nowhere",
        r"evaluation\.clip: there is no folder .*nowhere; a repository needs the form hf://",
    )
    refused(tmp_path, "holds no model: it has no config.json")
    other = changed(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "clip_text_model"}))
    refused(other, "holds a model of type 'clip_text_model', not of 'clip'")
    cut = changed(folder, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(cut, "transformers cannot read")
    weights.rename(cut / "pytorch_model.bin")
    refused(cut, "no weights as safetensors, only pickled ones")


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    less = changed(folder, tmp_path / "less")
    weights = load_file(less / "model.safetensors")
    projection = weights.pop("text_projection.weight")
    save_file(weights, less / "model.safetensors", {"format": "pt"})
    refused(less, "do not fit its config.json: missing text_projection.weight")
    weights |= {"text_projection.weight": projection, "head.weight": torch.zeros(2)}
    save_file(weights, less / "model.safetensors", {"format": "pt"})
    refused(less, "do not fit its config.json: unknown head.weight")
    del weights["head.weight"]
    save_file(weights | {"text_projection.weight": torch.zeros(3, 16)}, less / "model.safetensors", {"format": "pt"})
    refused(less, "do not fit its config.json: another shape of text_projection.weight")


@pytest.mark.parametrize("name", ["merges.txt", "preprocessor_config.json"])
def test_missing_files_are_refused_before_any_work(folder: Path, tmp_path: Path, name: str) -> None:
    refuse_missing(str(folder))
    part = changed(folder, tmp_path / "part")
    (part / name).unlink()
    with pytest.raises(Refused, match=r"holds no tokenizer|it has no preprocessor_config\.json"):
        refuse_missing(str(part))


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    """transformers creates an empty tokenizer if there is none, which gives all captions the same tokens."""
    without = changed(folder, tmp_path / "without")
    (without / "merges.txt").unlink()
    refused(without, "holds no tokenizer: neither tokenizer.json, nor vocab.json and merges.txt")
    larger = changed(folder, tmp_path / "larger")
    vocabulary = json.loads((larger / "vocab.json").read_text())
    ends = vocabulary["<|endoftext|>"]
    (larger / "vocab.json").write_text(json.dumps({**vocabulary, "more": ends + 1}))
    refused(larger, f"has token {ends + 1}, its text model {ends + 1} tokens")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    elsewhere = changed(folder, tmp_path / "elsewhere")
    (elsewhere / "config.json").write_text(json.dumps(config))
    refused(elsewhere, f"texts end with token {ends} in the tokenizer of .*, but with 7 in its config.json")


def test_preprocessing_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    refused(
        changed(folder, tmp_path / "smaller", {"crop_size": 12}),
        r"an image becomes \(3, 12, 12\), but its model takes \(3, 16, 16\)",
    )
    refused(changed(folder, tmp_path / "whole", {"do_center_crop": False}), r"an image becomes \(3, 24, 16\)")
    refused(
        changed(folder, tmp_path / "vit", {"image_processor_type": "ViTImageProcessor"}),
        "is for ViTImageProcessor, not for a CLIP",
    )
    damaged = changed(folder, tmp_path / "damaged")
    (damaged / "preprocessor_config.json").write_text("{")
    refused(damaged, r"preprocessor_config\.json is not JSON")
    (damaged / "preprocessor_config.json").write_text("[]")
    refused(damaged, r"preprocessor_config\.json holds no settings")
    (damaged / "preprocessor_config.json").unlink()
    refused(damaged, "does not define how images are preprocessed: it has no preprocessor_config.json")


def test_the_error_names_the_extra_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Refused, match=r"pip install '\.\[text\]'"):
        ClipScore.load(str(folder))
