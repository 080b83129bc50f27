"""Published students: import, sampling, and export in the official layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.student.published import (
    CONTAINERS,
    STUDENTS,
    export_official,
    import_student,
    official_state,
    official_suffix,
    published_networks,
)
from distill.student.sampler import sample_images, sample_sequence
from distill.student.student import Student
from distill.student.var import VarStudent
from generate_pairs.teachers.base import to_unit_range
from generate_pairs.teachers.importing.inspect import inspect
from generate_pairs.teachers.published import TEACHERS
from shards.core.errors import Refused

TABLES = {
    "var-dd-d16": "var_dd_d16",
    "var-dd-d20": "var_dd_d20",
    "var-dd-d24": "var_dd_d24",
    "llamagen-dd-b": "llamagen_dd_B",
    "llamagen-dd-l": "llamagen_dd_L",
}


def load_and_compare(published: Any, folder: Path) -> Student:
    """Load a student and check that its tensors equal those of the files."""
    student = Student.from_pretrained(folder)
    weights = published.weights
    ours = student.network.state_dict()
    assert ours.keys() == weights.student.keys()
    assert all(torch.equal(ours[name], weights.student[name]) for name in ours)
    decoder = student.tokenizer.state_dict()
    encoding = tuple(f"{name}." for name in student.tokenizer.encoding_modules)
    assert decoder.keys() == {name for name in weights.tokenizer if not name.startswith(encoding)}
    assert all(torch.equal(decoder[name], weights.tokenizer[name]) for name in decoder)
    return student


@pytest.fixture(scope="module")
def real_networks() -> Any:
    """All published networks, on the meta device."""
    return published_networks()


@pytest.fixture
def imported(published: Any, tmp_path: Path) -> Student:
    """The small published student, imported to the folder `student`."""
    import_student(published.write_both(student=True), published.student, tmp_path / "student")
    return load_and_compare(published, tmp_path / "student")


@pytest.mark.parametrize("name", STUDENTS)
def test_students_have_the_official_tensors(name: str, real_networks: Any, golden_table: Callable[[str], Any]) -> None:
    part, network = real_networks[f"student {name}"]
    table = golden_table(f"tensors/{TABLES[name]}")
    ours = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert ours == dict(table["tensors"])
    assert all(key.endswith(part.ignored) for key, _ in table["buffers_in_state_dict"])
    assert not any(key.endswith(part.ignored) for key in ours)


def test_every_entry_is_tested() -> None:
    assert TABLES.keys() == STUDENTS.keys()


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("var-dd-d16", "var_dd (var-d16.pth, var-d20.pth, var-d24.pth of microsoft/distilled_decoding)"),
        ("llamagen-dd-b", "llamagen_dd (llamagen-B.pt, llamagen-L.pt of microsoft/distilled_decoding)"),
    ],
)
def test_containers_are_those_of_the_official_programs(name: str, row: str, golden_table: Callable[[str], Any]) -> None:
    recorded = golden_table("containers")[row]
    others = recorded["alternatives"] if "alternatives" in recorded else [recorded["alternative"]]
    places = [recorded["path_to_state_dict"], *others]
    assert list(STUDENTS[name].network.containers) == [tuple(place) for place in places]


def test_sampling_settings_are_the_official_ones() -> None:
    """Timesteps and splits of the official sampling scripts."""
    assert {name: (entry.teacher, entry.timesteps, entry.split) for name, entry in STUDENTS.items()} == {
        "var-dd-d16": ("var-d16", (0, 5), 5),
        "var-dd-d20": ("var-d20", (0, 4), 4),
        "var-dd-d24": ("var-d24", (0, 4), 4),
        "llamagen-dd-b": ("llamagen-b-256", (0, 80), 80),
        "llamagen-dd-l": ("llamagen-l-256", (0, 80), 130),
    }
    assert STUDENTS["var-dd-d16"].network.file.name == "VAR-DD/var-d16.pth"
    assert STUDENTS["llamagen-dd-l"].network.file.name == "LlamaGen-DD/llamagen-L.pt"


def test_a_published_student_generates_images(published: Any, imported: Student) -> None:
    student = imported
    assert (student.timesteps, student.split) == ((0, 1), 1)
    assert (student.fingerprint, student.num_pairs) == (None, None)
    assert student.layout == TEACHERS[published.teacher].transformer.config.layout
    labels = np.array([3, 0, 7])
    drawn = {timesteps: next(sample_images(student, labels, 5, timesteps)).images_BIHW for timesteps in ((0,), (0, 1))}
    for images in drawn.values():
        assert images.shape == (3, *student.tokenizer.image_shape)
        assert torch.isfinite(images).all()
        assert images.std() > 0.01
    assert not torch.equal(drawn[0,], drawn[0, 1])


def test_the_order_of_the_files_does_not_matter(published: Any, tmp_path: Path) -> None:
    first, second = published.write_both(student=True)
    import_student([first, second], published.student, tmp_path / "one")
    import_student([second, first], published.student, tmp_path / "two")
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize(("family", "place"), [(name, place) for name in CONTAINERS for place in CONTAINERS[name]])
def test_weights_are_read_from_every_container(
    published: Any, published_files: ModuleType, place: tuple[str, ...], tmp_path: Path
) -> None:
    content = published_files.contained(published.weights.official("student"), place)
    file = published_files.written(published.folder / "student.pt", content)
    import_student([file, published.write("tokenizer")], published.student, tmp_path / "student")
    load_and_compare(published, tmp_path / "student")


def test_averaged_weights_come_first(published: Any, published_files: ModuleType, tmp_path: Path) -> None:
    state = published.weights.official("student")
    raw = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    content = published_files.training_checkpoint(published.family, raw, {})
    if published.family == "var":
        content["trainer"]["ema_parameters"] = state
    else:
        content["ema"] = state
    file = published_files.written(published.folder / "student.pt", content)
    import_student([file, published.write("tokenizer")], published.student, tmp_path / "student")
    load_and_compare(published, tmp_path / "student")


def test_official_files_are_recognised(published: Any) -> None:
    (fit,) = inspect(Path(published.write("student")), published_networks())
    assert (fit.network, fit.problems) == (f"student {published.student}", ())


def test_an_official_export_can_be_imported_without_change(published: Any, imported: Student, tmp_path: Path) -> None:
    official = tmp_path / f"out{official_suffix(published.family)}"
    export_official(imported, official)
    import_student([str(official), published.write("tokenizer")], published.student, tmp_path / "back")
    load_and_compare(published, tmp_path / "back")
    again = tmp_path / f"again{official.suffix}"
    export_official(Student.from_pretrained(tmp_path / "back"), again)
    assert again.read_bytes() == official.read_bytes()


def test_an_official_export_has_the_content_of_an_official_file(
    published: Any, imported: Student, tmp_path: Path
) -> None:
    export_official(imported, tmp_path / "out.pt")
    content: Any = torch.load(tmp_path / "out.pt", weights_only=True)
    for key in published.container("student"):
        assert list(content) == [key]
        content = content[key]
    wanted = published.weights.official("student")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in content.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in wanted.items()
    }
    num_bytes = sum(tensor.nbytes for tensor in content.values())
    assert (tmp_path / "out.pt").stat().st_size < num_bytes + 1000 * len(content)


@pytest.mark.parametrize("family", ["var"])
def test_the_constants_of_an_official_var_student(published: Any, imported: Student) -> None:
    """Scales of 1, 4 and 16 tokens after the condition: a query attends to lower levels and itself."""
    state = official_state(imported)
    levels = [0, 1, *[2] * 4, *[3] * 16]
    assert torch.equal(state["lvl_1L"], torch.tensor([levels]))
    seen = [[query == key or levels[key] < levels[query] for key in range(len(levels))] for query in range(len(levels))]
    expected = torch.where(torch.tensor(seen), 0.0, -torch.inf)
    assert torch.equal(state["attn_bias_for_masking"], expected[None, None])
    depth = TEACHERS[published.teacher].transformer.config.depth
    for block in range(depth):
        assert torch.equal(state[f"blocks.{block}.attn.zero_k_bias"], torch.zeros(32))
    assert f"blocks.{depth}.attn.zero_k_bias" not in state


def test_a_plugin_family_has_no_official_layout(imported: Student, tmp_path: Path) -> None:
    imported.family = "grid-gru"
    with pytest.raises(Refused, match=r"^students of the family 'grid-gru' have no official layout: only var and lla"):
        export_official(imported, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_files_that_are_not_the_named_student_are_refused(published: Any, tmp_path: Path) -> None:
    out = tmp_path / "student"
    one, two = published.write_both(student=True)
    with pytest.raises(Refused, match=f"^no published student is called 'cats': there are {published.student}$"):
        import_student([one, two], "cats", out)
    with pytest.raises(Refused, match=r"consists of two files, \S+ and \S+: 1 given$"):
        import_student([one], published.student, out)
    with pytest.raises(Refused, match=f"^there is no file {tmp_path / 'gone.pth'}$"):
        import_student([one, str(tmp_path / "gone.pth")], published.student, out)
    state = published.weights.official("student")
    del state["n_d_embed.weight"]
    file = published.write("student", state, "less.pth")
    with pytest.raises(Refused, match=rf"^{file} does not fit \w+Student: missing n_d_embed\.weight$"):
        import_student([file, two], published.student, out)
    with pytest.raises(Refused, match=r"^\S+transformer\.pth "):
        import_student([published.write("transformer"), two], published.student, out)
    assert not out.exists()


def test_an_occupied_folder_is_refused(published: Any, tmp_path: Path) -> None:
    files = published.write_both(student=True)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(Refused, match=rf"^{tmp_path} already contains \w+"):
        import_student(files, published.student, tmp_path)
    out = tmp_path / "student"
    import_student(files, published.student, out)
    with pytest.raises(Refused, match=f"^{out} already contains a student"):
        import_student(files, published.student, out)


def test_a_killed_import_can_be_repeated(published: Any, tmp_path: Path) -> None:
    files = published.write_both(student=True)
    import_student(files, published.student, tmp_path / "student")
    (tmp_path / "student" / "config.json").unlink()
    (tmp_path / "student" / "tokenizer.safetensors").write_bytes(b"half")
    (tmp_path / "student" / ".config.json.123.ab.tmp").touch()
    import_student(files, published.student, tmp_path / "student")
    load_and_compare(published, tmp_path / "student")


@torch.inference_mode()
@pytest.mark.parametrize(
    ("family", "name", "network", "tokenizer"),
    [("var", "var_dd_loop_a", "dd", "vae"), ("llamagen", "lg_dd_loop_a", "lgdd", "vq")],
)
def test_a_published_student_generates_the_official_images(
    published: Any,
    published_files: ModuleType,
    golden: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    network: str,
    tokenizer: str,
) -> None:
    case = golden(name)
    runs = case.spec["config"]["runs"]
    timesteps, split = max((tuple(run["t_list"]) for run in runs), key=len), runs[0]["split"]
    assert all(run["split"] == split for run in runs)
    entry = published_files.resized_teacher(published.teacher, case.config(network), case.config(tokenizer))
    monkeypatch.setitem(TEACHERS, "golden", entry)
    student_entry = published_files.resized_student(published.student, "golden", timesteps, split)
    monkeypatch.setitem(STUDENTS, "golden-dd", student_entry)
    files = [
        published.write(role, {**case.models[model], **case.buffers(model)})
        for role, model in (("student", network), ("tokenizer", tokenizer))
    ]
    import_student(files, "golden-dd", tmp_path / "student")
    student = Student.from_pretrained(tmp_path / "student")

    def image(embeddings: Tensor) -> Tensor:
        decoded = student.tokenizer.decode(embeddings)
        # Official LlamaGen-DD does not clamp.
        return to_unit_range(decoded) if published.family == "var" else decoded / 2 + 0.5

    results = {}
    for run in runs:
        passes = tuple(run["t_list"])
        tag = "t" + "_".join(map(str, passes))
        sequence = sample_sequence(student, case.inputs["noise"], case.inputs["label"], passes)
        results[f"{tag}_step{len(passes) - 1}_sequence"] = sequence.embeddings_BLC
        results[f"{tag}_image_01"] = image(sequence.embeddings_BLC)
    case.check(results)


@pytest.mark.parametrize("family", ["var"])
def test_an_official_export_of_the_golden_student_has_its_names(published: Any, golden: Callable[[str], Any]) -> None:
    """Names, shapes and dtypes of everything in an official file, constants included."""
    case = golden("var_dd_a")
    network = VarStudent(case.config("dd"))
    student = Student("var", network, torch.nn.Identity(), network.config.layout, (0,), 1, None, None)
    wanted = {**case.models["dd"], **case.buffers("dd")}
    ours = official_state(student)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in ours.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in wanted.items()
    }
