"""Where the checks and measurements run, for how long, and what they report."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from loralib.ops import triton_linear

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """device: "cuda" or "cpu". tiny: sizes that take no time, for a run without a GPU. deadline: of `time.monotonic`."""

    device: str
    tiny: bool
    deadline: float

    @property
    def cuda(self) -> bool:
        """Whether this is a GPU."""
        return self.device == "cuda"

    @property
    def implementations(self) -> tuple[str, ...]:
        """Who computes linear layers here."""
        return ("autograd", "triton") if triton_linear.problem(torch.empty(0, device=self.device)) is None else ("autograd",)

    @property
    def is_over(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() > self.deadline

    def free_bytes(self) -> int:
        """How much memory the device has left."""
        if not self.cuda:
            return 1 << 30
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def need(self, gigabytes: float) -> None:
        """`NotHereError` unless so much memory is free."""
        if (free := self.free_bytes() / 1e9) < gigabytes:
            raise NotHereError(f"needs {gigabytes:.0f} GB, and {free:.0f} are free")

    def need_cuda(self) -> None:
        """`NotHereError` on a CPU."""
        if not self.cuda:
            raise NotHereError("needs CUDA")


class NotHereError(Exception):
    """Why something cannot be done here, which is no failure."""


Part = Callable[[Setting], Iterator[Row]]


def run(parts: Mapping[str, Part], setting: Setting, say: Callable[[str], None]) -> Iterator[list[Row]]:
    """The rows of each part in turn. What fails, cannot be done here, or comes when the time is up, is a row that says so.

    passed: None for what was not done, and for measurements that went through.
    """
    for name, part in parts.items():
        say(name)
        rows: list[Row] = []
        if setting.is_over:
            yield [not_done(name, "no time was left")]
            continue
        try:
            for row in part(setting):
                rows.append({"part": name, **row})
                if setting.is_over:
                    rows.append(not_done(name, "the time was up before the end of this part"))
                    break
        except NotHereError as reason:
            rows.append(not_done(name, str(reason)))
        except torch.OutOfMemoryError:
            rows.append(not_done(name, "out of memory"))
        except Exception as error:  # noqa: BLE001 (a check that cannot run has failed, and the others are to run all the same)
            rows.append({"part": name, "case": "", "passed": False, "note": f"{type(error).__name__}: {first_line(error)}"})
        finally:
            if setting.cuda:
                torch.cuda.empty_cache()
        yield rows


def not_done(part: str, note: str) -> Row:
    return {"part": part, "case": "", "passed": None, "note": note}


def first_line(error: BaseException) -> str:
    """The first line of a message."""
    return str(error).strip().partition("\n")[0][:300]
