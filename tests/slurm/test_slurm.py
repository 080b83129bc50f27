"""Both ways to use Slurm, on a real installation of one node, with cancelled jobs.

Not part of the usual tests: it needs root, and Debian's packages, which it installs if they are missing. Run it from the
repository's root; it takes about two minutes:

    pip install -e '.[test,slurm]' && pytest -m slow -n 0 tests/slurm
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shards.dataset.verify import verify

REPOSITORY = Path(__file__).resolve().parents[2]
START = Path(__file__).with_name("start.sh")
SABOTAGE = REPOSITORY / "tests" / "generate_pairs" / "generation" / "sabotage"
TOKENLEAP = [sys.executable, "-m", "pipeline.cli"]
NUM_SHARDS = 4

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("family", ["llamagen"], indirect=True)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A running Slurm; yields the environment variables for its commands."""
    pytest.importorskip("dask_jobqueue", reason="needs the extra slurm")
    if os.geteuid() != 0:
        pytest.skip("starting Slurm needs root")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([START, folder], stderr=subprocess.PIPE, text=True, check=False)
    if started.returncode:
        subprocess.run([START, folder, "stop"], check=False)
        pytest.skip(f"Slurm cannot be started here: {started.stderr.strip()[-300:]}")
    yield {
        **os.environ,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PYTHONPATH": f"{SABOTAGE}:{REPOSITORY}",
        "SABOTAGE": json.dumps({"slow": 1.0}),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run([START, folder, "stop"], check=False)


@pytest.fixture
def folder(teacher_path: Path, tmp_path: Path) -> Path:
    (tmp_path / "preset.toml").write_text(
        f'[teacher]\nname = "{teacher_path}"\nguidance_scale = 1.5\n[pairs]\nnum_pairs = 96\n'
        "pairs_per_shard = 32\nbatch_size = 16\nseed = 3\nsolver_steps = 16\n"
        '[cluster]\njobs = 2\nmemory = "1GB"\ninterface = "lo"\nwalltime = "0:30:00"\n'
    )
    return tmp_path


def shards(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "shards").glob("[!.]*")}


def rows(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "manifest").glob("[!.]*")}


def begun(root: Path) -> int:
    return "".join(path.read_text() for path in (root / "logs").glob("*.log")).count(" begins ")


def output(slurm: dict[str, str], command: list[str], folder: Path | None = None) -> str:
    """Run a command; returns its output."""
    return subprocess.run(command, cwd=folder, env=slurm, capture_output=True, text=True, check=True).stdout


def jobs(slurm: dict[str, str], *options: str) -> list[str]:
    """Ids of the running jobs."""
    return output(slurm, ["squeue", "--noheader", "--states=RUNNING", "--format=%i", *options]).split()


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not is_true():
        assert time.monotonic() < deadline, f"timeout: {what}"
        time.sleep(0.1)


def generate(folder: Path, slurm: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [*TOKENLEAP, "generate", "preset.toml", "--out", "pairs", *arguments]
    return subprocess.Popen(command, cwd=folder, env=slurm, stderr=subprocess.PIPE, text=True)


def test_a_cancelled_worker_is_replaced(folder: Path, slurm: dict[str, str], pairs_root: Path) -> None:
    """With one job: the generation ends only if the job is replaced."""
    root = folder / "pairs"
    driver = generate(folder, slurm, "--cluster", "slurm", "--set", "cluster.jobs=1")
    wait_until(lambda: len(rows(root)) >= 1, "the first shard")
    (first,) = jobs(slurm)
    subprocess.run(["scancel", first], env=slurm, check=True)
    seen: set[str] = set()
    while driver.poll() is None:
        seen.update(jobs(slurm))
        time.sleep(0.2)
    assert driver.returncode == 0, driver.communicate()[1]
    assert seen - {first}
    assert shards(root) == shards(pairs_root)
    assert verify(root) == []
    wait_until(lambda: jobs(slurm) == [], "the end of the jobs")


def test_jobs_do_not_outlive_a_killed_driver(folder: Path, slurm: dict[str, str], pairs_root: Path) -> None:
    root = folder / "pairs"
    driver = generate(folder, slurm, "--cluster", "slurm")
    wait_until(lambda: len(rows(root)) >= 1, "the first shard")
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    wait_until(lambda: jobs(slurm) == [], "the end of the jobs")
    before = rows(root)
    again = generate(folder, slurm, "--cluster", "slurm")
    assert again.wait() == 0, again.communicate()[1]
    assert before.items() <= rows(root).items()
    assert shards(root) == shards(pairs_root)


def ablate(folder: Path, slurm: dict[str, str], pairs: Path, out: str, *options: str) -> subprocess.Popen[str]:
    command = [*TOKENLEAP, "ablate", "preset.toml", "--pairs", str(pairs), "--out", out]
    settings = ["student.split=16", "train.num_steps=12", "train.batch_size=16", "train.warmup_steps=4"]
    command += ["--sizes", "32,64", "--every", "4", *options]
    command += [word for setting in (*settings, "evaluation.num_images=100") for word in ("--set", setting)]
    return subprocess.Popen(command, cwd=folder, env=slurm, stderr=subprocess.PIPE, text=True)


def test_a_cancelled_job_does_not_change_an_ablations_bytes(
    folder: Path, slurm: dict[str, str], pairs_root: Path
) -> None:
    here = ablate(folder, slurm, pairs_root, "here", "--workers", "0")
    assert here.wait() == 0, here.communicate()[1]
    there = ablate(folder, slurm, pairs_root, "there", "--cluster", "slurm", "--set", "cluster.jobs=1")
    wait_until(lambda: any((folder / "there").glob("cells/*/curve/*.json")), "the first evaluation")
    subprocess.run(["scancel", *jobs(slurm)], env=slurm, check=True)
    assert there.wait() == 0, there.communicate()[1]
    table = "ablation.parquet"
    assert (folder / "there" / table).read_bytes() == (folder / "here" / table).read_bytes()
    wait_until(lambda: jobs(slurm) == [], "the end of the jobs")


def test_a_job_array_with_a_cancelled_task_resumes(folder: Path, slurm: dict[str, str], pairs_root: Path) -> None:
    root = folder / "pairs"
    (folder / "array.sh").write_text(
        "#!/bin/sh\n#SBATCH --array=0-1 --mem=1G --output=task-%a.log\n"
        f"{sys.executable} -m pipeline.cli generate preset.toml --out pairs "
        "--task-index $SLURM_ARRAY_TASK_ID --task-count 2\n"
    )
    submit = ["sbatch", "--parsable", "--wait", "array.sh"]
    first = subprocess.Popen(submit, cwd=folder, env=slurm, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: begun(root) >= 2, "the first two shards")
    array = output(slurm, ["squeue", "--noheader", "--array", "--format=%i"]).split()
    cancelled = next(name for name in array if name.endswith("_1"))
    subprocess.run(["scancel", cancelled], env=slurm, check=True)
    assert first.wait() != 0
    before = rows(root)
    assert {"pairs-000000.parquet", "pairs-000002.parquet"} <= set(before)
    assert len(before) < NUM_SHARDS
    subprocess.run(submit, cwd=folder, env=slurm, stdout=subprocess.DEVNULL, check=True)
    assert before.items() <= rows(root).items()
    assert shards(root) == shards(pairs_root)
    assert verify(root) == []


def distill(folder: Path, slurm: dict[str, str], pairs: Path, out: str, *options: str) -> list[str]:
    """The arguments of `tokenleap` or torchrun for a training in two processes."""
    bin_folder = Path(sys.executable).parent
    settings = ["student.split=16", "train.num_steps=600", "train.batch_size=16", "train.warmup_steps=4"]
    settings += ["train.checkpoint_interval=50", "train.log_interval=1", "train.device=cpu"]
    settings += [f'cluster.prologue=["export PATH={bin_folder}:$PATH"]']
    command = ["distill", "preset.toml", "--pairs", str(pairs), "--out", out, *options]
    return command + [word for setting in settings for word in ("--set", setting)]


def job_field(slurm: dict[str, str], job: str, name: str) -> str:
    """A field of `scontrol show job`, such as `JobState`, or `Restarts`, the number of requeues."""
    words = output(slurm, ["scontrol", "show", "job", job]).split()
    (word,) = [word for word in words if word.startswith(f"{name}=")]
    return word.removeprefix(f"{name}=")


def test_a_requeued_training_ends_in_the_same_bytes(folder: Path, slurm: dict[str, str], pairs_root: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    here = distill(folder, slurm, pairs_root, "here")
    subprocess.run([*torchrun, "-m", "pipeline.cli", *here], cwd=folder, env=slurm, check=True)
    there = distill(folder, slurm, pairs_root, "there", "--processes", "2", "--print-job-script")
    (folder / "job.sh").write_text(output(slurm, [*TOKENLEAP, *there], folder))
    job, out = output(slurm, ["sbatch", "--parsable", "job.sh"], folder).strip(), folder / "there"
    wait_until(lambda: any((out / "checkpoints").glob("step-*.json")), "the first checkpoint")
    # Slurm sends this signal shortly before the time limit.
    subprocess.run(["scancel", "--signal=USR1", "--batch", job], env=slurm, check=True)
    wait_until(lambda: job_field(slurm, job, "Restarts") == "1", "the job's return into the queue")
    log = (folder / f"tokenleap-distill-{job}.log").read_text()
    assert "of 600 steps are done and kept in there/checkpoints" in log
    assert not (out / "student.safetensors").exists()
    wait_until(lambda: job_field(slurm, job, "JobState") == "PENDING", "the end of the first half")
    # By default Slurm waits for two minutes.
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=slurm, check=True)
    wait_until(lambda: (out / "student.safetensors").exists() and jobs(slurm) == [], "the end of the training")
    assert job_field(slurm, job, "Restarts") == "1"
    for name in ("student.safetensors", "config.json", "checkpoints/step-000600.safetensors"):
        assert (out / name).read_bytes() == (folder / "here" / name).read_bytes(), name
