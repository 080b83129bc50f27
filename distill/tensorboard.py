"""The training log for TensorBoard, for who likes to look there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from distill.metrics import Board
from shards.core.errors import Refused


@contextmanager
def tensorboard(out: Path, first_step: int, wanted: bool, is_first: bool) -> Iterator[Board | None]:
    """What to tell each line of a log, if it is wanted.

    Args:
        out: the student's folder; events lie in `tensorboard/` there.
        first_step: where the training goes on: what was logged after it is taken back.
        wanted: whether anything is written.
        is_first: whether this process is the one that writes; the others are refused alike, and write nothing.

    Raises:
        Refused: it is wanted and not installed.
    """
    if not wanted:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise Refused(
            "train.tensorboard needs the package tensorboard: pip install 'onestep[tensorboard]', or set it to false"
        ) from error
    if not is_first:
        yield None
        return
    with SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1) as writer:

        def board(step: int, numbers: Mapping[str, float]) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)

        yield board
