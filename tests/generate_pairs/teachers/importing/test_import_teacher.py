"""Import of published teachers: from every container, local or on the Hub, to the same weights."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest
import torch
from torch import Tensor

from generate_pairs.teachers.base import Teacher, to_unit_range
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher
from generate_pairs.teachers.importing.checkpoint_file import local_file, read_checkpoint
from generate_pairs.teachers.importing.import_teacher import import_teacher
from generate_pairs.teachers.importing.inspect import published_transformer
from generate_pairs.teachers.published import TEACHERS
from shards.core.errors import Failed, Refused
from shards.storage.files import sha256_file

TRANSFORMER_PLACES = [
    ("var", ()),
    ("var", ("trainer", "var_wo_ddp")),
    ("llamagen", ()),
    ("llamagen", ("model",)),
    ("llamagen", ("module",)),
    ("llamagen", ("state_dict",)),
]
SQUARE = {"var": "blocks.0.attn.proj.weight", "llamagen": "layers.0.attention.wo.weight"}
"""A square matrix of each family."""


def loads_as(published: Any, name: str = "") -> LoadedTeacher:
    """Load the imported teacher and check that its tensors equal those of the files, bit for bit."""
    loaded = load_teacher(name or published.teacher)
    for role in ("transformer", "tokenizer"):
        wanted = getattr(published.weights, role)
        ours = getattr(loaded.teacher, role).state_dict()
        assert ours.keys() == wanted.keys()
        assert all(torch.equal(ours[key], wanted[key]) for key in wanted)
    return loaded


def is_empty(folder: Path) -> bool:
    return not folder.exists() or not list(folder.rglob("*"))


def test_two_official_files_become_a_teacher(published: Any, home: Path) -> None:
    files = published.write_both()
    path = import_teacher(files, published.teacher)
    assert path == home / "teachers" / f"{published.teacher}.safetensors"
    loaded = loads_as(published)
    assert (loaded.name, loaded.family) == (published.teacher, published.family)
    assert loaded.about["files"] == {
        "transformer": sha256_file(Path(files[0])),
        "tokenizer": sha256_file(Path(files[1])),
    }
    assert not loaded.teacher.training
    assert not any(parameter.requires_grad for parameter in loaded.teacher.parameters())


def test_the_order_of_the_files_does_not_matter(published: Any, home: Path) -> None:
    first, second = published.write_both()
    path = import_teacher([first, second], published.teacher)
    content = path.read_bytes()
    path.unlink()
    assert import_teacher([second, first], published.teacher).read_bytes() == content


@pytest.mark.parametrize(("family", "place"), TRANSFORMER_PLACES)
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_are_found_in_every_container(
    published: Any, published_files: ModuleType, place: tuple[str, ...], legacy: bool, home: Path
) -> None:
    content = published_files.contained(published.weights.official("transformer"), place)
    file = published_files.written(published.folder / "file.pt", content, legacy)
    import_teacher([file, published.write("tokenizer")], published.teacher)
    loads_as(published)


def test_a_training_checkpoint_is_accepted(published: Any, published_files: ModuleType) -> None:
    weights = published.weights
    content = published_files.training_checkpoint(
        published.family, weights.official("transformer"), weights.official("tokenizer")
    )
    file = published_files.written(published.folder / "ar-ckpt-best.pth", content)
    # VAR's contains the tokenizer, too.
    tokenizer = file if published.family == "var" else published.write("tokenizer")
    import_teacher([file, tokenizer], published.teacher)
    loads_as(published)


def test_files_converted_to_safetensors_are_accepted(published: Any, published_files: ModuleType) -> None:
    files = [
        published_files.written(published.folder / f"{role}.safetensors", published.weights.official(role))
        for role in ("transformer", "tokenizer")
    ]
    import_teacher(files, published.teacher)
    loads_as(published)


def test_half_precision_becomes_the_same_numbers_in_float32(published: Any) -> None:
    half = {name: tensor.bfloat16() for name, tensor in published.weights.transformer.items()}
    import_teacher([published.write("transformer", half), published.write("tokenizer")], published.teacher)
    ours = load_teacher(published.teacher).teacher.transformer.state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())
    assert all(torch.equal(ours[name], half[name].float()) for name in half)


def test_one_tensor_under_two_names_becomes_two(published: Any) -> None:
    state = dict(published.weights.transformer)
    one, other = SQUARE[published.family], SQUARE[published.family].replace(".0.", ".1.")
    state[other] = state[one]
    import_teacher([published.write("transformer", state), published.write("tokenizer")], published.teacher)
    ours = load_teacher(published.teacher).teacher.transformer.state_dict()
    assert torch.equal(ours[one], ours[other])
    assert ours[one].data_ptr() != ours[other].data_ptr()


def test_the_same_command_again_keeps_the_file(published: Any, published_files: ModuleType) -> None:
    files = published.write_both()
    path = import_teacher(files, published.teacher)
    before = path.stat()
    assert import_teacher(files[::-1], published.teacher) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    other = published_files.random_state(published_transformer(published.teacher), seed=99)
    with pytest.raises(Refused, match=r"files of another sha256 \(\w+ [0-9a-f]{12}, \w+ [0-9a-f]{12}\)") as refused:
        import_teacher([published.write("transformer", other, "other.pth"), files[1]], published.teacher)
    assert str(path) in str(refused.value)
    assert path.stat().st_ino == before.st_ino
    loads_as(published)


def test_names_of_files_change_nothing(published: Any, tmp_path: Path) -> None:
    path = import_teacher(published.write_both(), published.teacher)
    before = path.read_bytes()
    path.unlink()
    files = []
    for role in ("transformer", "tokenizer"):
        (tmp_path / role).mkdir()
        source = Path(published.write(role))
        files.append(str(source.rename(tmp_path / role / "weights.pth")))
    assert import_teacher(files, published.teacher).read_bytes() == before


def test_repeated_rows_of_the_codebook_are_counted(published: Any) -> None:
    state = dict(published.weights.official("tokenizer"))
    codebook = state["quantize.embedding.weight"].clone()
    codebook[5], codebook[7] = codebook[2].clone(), codebook[2].clone()
    state["quantize.embedding.weight"] = codebook
    import_teacher([published.write("transformer"), published.write("tokenizer", state)], published.teacher)
    assert load_teacher(published.teacher).about["codebook_rows_repeated"] == 2


def test_a_transposed_square_matrix_is_not_detected(published: Any) -> None:
    """Names and shapes do not differ; only the recorded sha256 of the file does."""
    state = dict(published.weights.transformer)
    state[SQUARE[published.family]] = state[SQUARE[published.family]].T.contiguous()
    import_teacher([published.write("transformer", state), published.write("tokenizer")], published.teacher)
    ours = load_teacher(published.teacher).teacher.transformer.state_dict()
    assert torch.equal(ours[SQUARE[published.family]].T, published.weights.transformer[SQUARE[published.family]])


def test_the_command_line_of_a_training_program_is_accepted(tmp_path: Path) -> None:
    content = {"model": {"a": torch.ones(2)}, "args": Namespace(lr=0.1, model="GPT-B")}
    torch.save(content, tmp_path / "file.pt")
    assert read_checkpoint(tmp_path / "file.pt").content["args"] == content["args"]


def test_the_message_for_a_missing_teacher_names_its_files(published: Any, home: Path) -> None:
    entry = TEACHERS[published.teacher]
    with pytest.raises(Refused, match="tokenleap teachers import .* --as " + published.teacher) as refused:
        load_teacher(published.teacher)
    assert str(entry.transformer.file) in str(refused.value)
    assert str(entry.tokenizer.file) in str(refused.value)


def test_without_the_hubs_client_files_of_the_hub_are_refused(
    published: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    file = TEACHERS[published.teacher].transformer.file
    with pytest.raises(Refused, match=rf"^{file} needs the Hugging Face client: pip install '\.\[hub\]'"):
        import_teacher([], published.teacher)
    assert is_empty(home)


def test_without_files_both_come_from_the_hub(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    download = Mock(side_effect=published.write_both())
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    import_teacher([], published.teacher)
    loads_as(published)
    entry = TEACHERS[published.teacher]
    files = entry.transformer.file, entry.tokenizer.file
    assert download.call_args_list == [call(file.repository, file.name) for file in files]


def test_a_file_in_a_folder_of_a_repository_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    download = Mock(return_value=str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    assert local_file("hf://microsoft/distilled_decoding/VAR-DD/var-d16.pth") == tmp_path
    download.assert_called_once_with("microsoft/distilled_decoding", "VAR-DD/var-d16.pth")
    for name in ("hf://", "hf://microsoft", "hf://microsoft/distilled_decoding", "hf://a/b/"):
        with pytest.raises(Refused, match=f"^{name}: a file on the Hub is named hf://OWNER/REPOSITORY/FILE$"):
            local_file(name)


def test_a_failed_download_raises_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    download = Mock(side_effect=TimeoutError("no answer"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    with pytest.raises(Failed, match=r"^cannot get hf://a/b/c\.pt: no answer$"):
        local_file("hf://a/b/c.pt")


def forced(teacher: Any, labels: Tensor, tokens: Tensor, guidance_scale: float) -> Tensor:
    """Guided logits (B, L, V) of a decoding with these tokens."""
    decoding, steps = teacher.start(labels, guidance_scale), []
    for step in range(teacher.layout.num_steps):
        steps.append(decoding.logits())
        decoding.append(tokens[:, teacher.layout.span(step)])
    return torch.cat(steps, dim=1)


@pytest.fixture
def imported(published: Any, published_files: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Teacher]:
    """Imports a teacher of these configurations and tensors, which are random for a role without any."""

    def run(transformer: Any, tokenizer: Any, /, **states: dict[str, Tensor]) -> Teacher:
        entry = published_files.resized_teacher(published.teacher, transformer, tokenizer)
        monkeypatch.setitem(TEACHERS, "golden", entry)
        weights = published_files.weights_of("golden")
        roles = ("transformer", "tokenizer")
        import_teacher([published.write(role, states.get(role) or weights.official(role)) for role in roles], "golden")
        return load_teacher("golden").teacher

    return run


@torch.no_grad()
@pytest.mark.parametrize("family", ["var"])
def test_an_imported_var_gives_the_official_outputs(
    golden: Callable[[str], Any], imported: Callable[..., Teacher]
) -> None:
    case = golden("var_transformer_a")
    transformer, tokenizer = ({**case.models[model], **case.buffers(model)} for model in ("var", "vae"))
    teacher = imported(case.config("var"), case.config("vae"), transformer=transformer, tokenizer=tokenizer)
    labels, tokens = case.inputs["label"], case.inputs["ids"]
    case.check_all(
        {
            "tf_logits": teacher.forced_logits(labels, tokens),
            "guided_logits": forced(teacher, labels, tokens, case.spec["config"]["cfg"]),
            "image_01": to_unit_range(teacher.tokenizer.decode(teacher.tokenizer.embed(tokens))),
        }
    )


@torch.no_grad()
@pytest.mark.parametrize("family", ["llamagen"])
def test_an_imported_llamagen_gives_the_official_outputs(
    published: Any, golden: Callable[[str], Any], imported: Callable[..., Teacher]
) -> None:
    case = golden("lg_c2i_a")
    # Logits do not depend on the tokenizer; it only needs the same number of rows.
    tokenizer = replace(TEACHERS[published.teacher].tokenizer.config, vocab_size=64)
    teacher = imported(case.config("gpt"), tokenizer, transformer=case.models["gpt"])
    labels, tokens = case.inputs["label"], case.inputs["ids"]
    guided = {
        f"guided_logits_cfg{scale:g}": forced(teacher, labels, tokens, scale)
        for scale in case.spec["config"]["cfg_scales"]
    }
    case.check({**guided, "tf_logits": teacher.forced_logits(labels, tokens)})
