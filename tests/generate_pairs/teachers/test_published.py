"""The tables of published teachers against names and shapes of the official classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from generate_pairs.teachers.checkpoints import state_problems
from generate_pairs.teachers.importing.checkpoint_file import Checkpoint
from generate_pairs.teachers.importing.inspect import published_transformer, teacher_networks
from generate_pairs.teachers.llamagen.transformer import OFFICIAL_SIZES, LlamaGenTransformer
from generate_pairs.teachers.published import TEACHERS, VQ8, Part
from generate_pairs.teachers.registry import family_of

TRANSFORMERS = {
    "var-d16": "var_d16",
    "var-d20": "var_d20",
    "var-d24": "var_d24",
    "var-d30": "var_d30",
    "var-d36-512": "var_d36s_512",
    "llamagen-b-256": "llamagen_B_c2i_256",
    "llamagen-l-256": "llamagen_L_c2i_256",
    # No tensor depends on the number of tokens.
    "llamagen-b-384": "llamagen_B_c2i_256",
    "llamagen-l-384": "llamagen_L_c2i_256",
    "llamagen-xl-384": "llamagen_XL_c2i_256",
    "llamagen-xxl-384": "llamagen_XXL_c2i_256",
    "llamagen-t2i-256": "llamagen_XL_t2i_256",
    "llamagen-t2i-512": "llamagen_XL_t2i_256",
}
WITHOUT_A_TABLE = {"llamagen-3b-384"}
TOKENIZERS = {"var": "var_vae_ch160v4096z32", "llamagen": "llamagen_vq16"}


def check(part: Part, network: torch.nn.Module, table: Any) -> None:
    """The network has exactly the tensors of the table; the table's buffers are ignored."""
    ours = network.state_dict()
    assert {name: list(tensor.shape) for name, tensor in ours.items()} == dict(table["tensors"])
    with torch.device("meta"):
        buffers = {name: torch.empty(shape) for name, shape in table["buffers_in_state_dict"]}
    tensors = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in ours.items()}
    assert state_problems(ours, {**tensors, **buffers}, part.ignored) == []
    assert state_problems(ours, {**tensors, **buffers}) == sorted(f"unknown {name}" for name in buffers)
    assert not any(name.endswith(part.ignored) for name in ours)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_have_the_official_tensors(name: str, golden_table: Callable[[str], Any]) -> None:
    check(TEACHERS[name].transformer, published_transformer(name), golden_table(f"tensors/{TRANSFORMERS[name]}"))


@pytest.mark.parametrize("name", TEACHERS)
def test_tokenizers_have_the_official_tensors(name: str, golden_table: Callable[[str], Any]) -> None:
    published = TEACHERS[name]
    with torch.device("meta"):
        tokenizer = family_of(published.family).tokenizer(published.tokenizer.config)
    check(published.tokenizer, tokenizer, golden_table(f"tensors/{TOKENIZERS[published.family]}"))


def test_the_finer_tokenizer_has_the_official_tensors(golden_table: Callable[[str], Any]) -> None:
    with torch.device("meta"):
        tokenizer = family_of("llamagen").tokenizer(VQ8.config)
    check(VQ8, tokenizer, golden_table("tensors/llamagen_vq8"))


def test_an_unpublished_size_has_the_official_tensors(golden_table: Callable[[str], Any]) -> None:
    width, depth, num_heads = OFFICIAL_SIZES["XXXL"]
    part = TEACHERS["llamagen-b-256"].transformer
    config = replace(part.config, width=width, depth=depth, num_heads=num_heads)
    with torch.device("meta"):
        transformer = LlamaGenTransformer(config)
    check(part, transformer, golden_table("tensors/llamagen_XXXL_c2i_256"))


def test_no_entry_goes_untested() -> None:
    assert TRANSFORMERS.keys() | WITHOUT_A_TABLE == TEACHERS.keys()
    assert not TRANSFORMERS.keys() & WITHOUT_A_TABLE
    tokenizers = {f"tokenizer {entry.tokenizer.file.name}" for entry in TEACHERS.values()}
    assert teacher_networks().keys() == {
        *(f"transformer of {name}" for name in TEACHERS),
        *tokenizers,
        "tokenizer vq_ds8_c2i.pt",
    }


def test_the_size_without_a_table_has_the_number_of_parameters_in_its_name() -> None:
    """Its shape is that of the official constructor: 24 layers, 32 heads, width 3200."""
    count = sum(tensor.numel() for tensor in published_transformer("llamagen-3b-384").parameters())
    assert count == pytest.approx(3.1e9, rel=0.02)


@pytest.mark.parametrize(
    ("role", "name", "row"),
    [
        ("transformer", "var-d16", "var (var_d16.pth .. var_d30.pth)"),
        ("tokenizer", "var-d16", "var_vae (vae_ch160v4096z32.pth)"),
        ("transformer", "llamagen-b-256", "llamagen c2i / t2i"),
        ("tokenizer", "llamagen-b-256", "llamagen vq"),
    ],
)
def test_containers_are_those_of_the_official_programs(
    role: str, name: str, row: str, golden_table: Callable[[str], Any]
) -> None:
    part = getattr(TEACHERS[name], role)
    recorded = golden_table("containers")[row]
    places = [recorded["path_to_state_dict"], *recorded.get("alternatives", [])]
    assert list(part.containers[: len(places)]) == [tuple(place) for place in places]


@pytest.mark.parametrize(("role", "key"), [("transformer", "var_wo_ddp"), ("tokenizer", "vae_local")])
def test_a_training_checkpoint_of_var_is_accepted(role: str, key: str, golden_table: Callable[[str], Any]) -> None:
    recorded = golden_table("containers")["var training checkpoint (ar-ckpt-*.pth)"]
    assert key in recorded["trainer_keys"]
    trainer = {name: {"a": torch.zeros(1)} if name == key else {} for name in recorded["trainer_keys"]}
    content = dict.fromkeys(recorded["top_level_keys"], 0) | {"trainer": trainer}
    checkpoint = Checkpoint(Path("ar-ckpt-best.pth"), content)
    assert checkpoint.place(getattr(TEACHERS["var-d16"], role)) == ("trainer", key)
