"""A supervisor with a clock of its own, or under cProfile: the product has no switch for either.

``python -m tests.netns.launcher [--clock FILE] [--profile FILE] -- WORDS``: runs ``skerry WORDS``.
The clock's file holds a double: how many seconds this process's clock is ahead; it may change.
"""

from __future__ import annotations

import argparse
import cProfile
import mmap
import struct
import sys
import time
from pathlib import Path


def shift_clock(file: Path) -> None:
    """Make `time.time` follow the file. Before the product is imported: it keeps references."""
    with file.open("rb") as opened:
        ahead = mmap.mmap(opened.fileno(), 8, prot=mmap.PROT_READ)
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + struct.unpack_from("d", ahead)[0]
    time.time_ns = lambda: real_ns() + int(struct.unpack_from("d", ahead)[0] * 1e9)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clock", type=Path)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("words", nargs="+")
    arguments = parser.parse_args()
    if arguments.clock is not None:
        shift_clock(arguments.clock)
    from skerry.__main__ import main as skerry

    if arguments.profile is None:
        return skerry(arguments.words)
    # Processor time: with many nodes on few cores, wall time would only tell of the queue.
    profile = cProfile.Profile(time.thread_time)
    try:
        return profile.runcall(skerry, arguments.words)
    finally:
        profile.dump_stats(arguments.profile)


if __name__ == "__main__":
    sys.exit(main())
