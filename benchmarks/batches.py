# SPDX-License-Identifier: Apache-2.0
"""One batch at 3941/394: how long until it stands in memory, beside other ways.

    python -m benchmarks.batches [FOLDER] [--rounds 25]

FOLDER holds a dataset that `benchmarks.full_size` wrote. Milliseconds for one batch,
ten at a time as the feed asks for them. Rows: a plain copy of as many bytes; our gather
from one array in memory, from 18 of them, from the warm memory map; the notebook's
collator on Python lists (one batch); the same on a `datasets` column, which decodes
each row for the loader and again for the collator (4 rows are, then scaled); then from
the map with nothing of it in the page cache, by plain indexing and by ours. Prints
medians and ratios; writes batches.json.
"""

import argparse
import ctypes
import json
import mmap
import os
import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.updates import BATCH_SIZE, collate

HERE = Path(__file__).parent
IN_MEMORY = 540  # trajectories held in memory, 0.9 GB: far beyond any cache
TOGETHER = 10
WARM = "gather, warm map of 18 shards"
DECODED = 24  # trajectories held as Python lists, 0.4 GB


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="runs/full_size", type=Path)
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()

    import datasets

    from dt_jax.data.readers import load_trajectories
    from dt_jax.data.trajectories import Trajectories

    mapped = load_trajectories(args.folder)
    in_memory = [
        {
            "states": mapped.states.slice(start, start + 100).copy(),
            "actions": mapped.actions.slice(start, start + 100).copy(),
            "rewards": mapped.rewards[start : start + 100],
        }
        for start in mapped.starts[:IN_MEMORY]
    ]
    one = Trajectories.from_episodes(in_memory)
    column = datasets.load_from_disk(str(args.folder))["train"]
    lists = [column[number] for number in range(DECODED)]
    mean, std = mapped.state_mean, mapped.state_std
    size = TOGETHER * BATCH_SIZE * 20 * (3941 + 394)
    source = np.random.default_rng(0).random(size, np.float32)
    target = np.empty_like(source)
    samplers = {
        "gather, one array": sampler_of(one),
        "gather, 18 arrays": sampler_of(in_shards(in_memory)),
        WARM: sampler_of(mapped),
    }
    ways = {"np.copyto": lambda step: np.copyto(target, source)}
    ways |= {name: partial(gather, sampler) for name, sampler in samplers.items()}

    def decode(step):
        for number in range(4):
            column[(4 * step + number) * 37 % len(column)]

    times = {name: [] for name in (*ways, "collator on lists")}
    decoding = []
    for step in range(args.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way(step)
            times[name].append((time.perf_counter() - start) / TOGETHER)
        start = time.perf_counter()
        collate(lists, mean, std)
        times["collator on lists"].append(time.perf_counter() - start)
        start = time.perf_counter()
        decode(step)
        twice = 2 * (time.perf_counter() - start) * BATCH_SIZE / 4
        decoding.append(twice + times["collator on lists"][-1])
    times["collator on a datasets column"] = decoding
    cold = {
        "plain indexing, cold map": lambda step: index_plainly(samplers[WARM], step),
        "gather, cold map": partial(gather, samplers[WARM]),
    }
    for name, way in cold.items():
        times[name] = []
        for step in range(args.rounds, args.rounds + 10):
            drop_pages(mapped, args.folder)
            start = time.perf_counter()
            way(step)
            times[name].append((time.perf_counter() - start) / TOGETHER)
    medians = {name: float(np.median(t[5:])) for name, t in times.items()}
    print(f"{'way':32s}{'ms':>10s}{'x copyto':>10s}{'x map':>10s}")
    for name, median in medians.items():
        copies = median / medians["np.copyto"]
        maps = median / medians[WARM]
        print(f"{name:32s}{1e3 * median:10.2f}{copies:10.2f}{maps:10.2f}")
    (HERE / "batches.json").write_text(json.dumps(medians, indent=2) + "\n")


def gather(sampler, step):
    sampler.gather(*draw(sampler, step))


def draw(sampler, step):
    draws = map(sampler.draw, range(TOGETHER * step, TOGETHER * (step + 1)))
    return [np.concatenate(part) for part in zip(*draws, strict=True)]


def index_plainly(sampler, step):
    """The states and actions of the batches, as NumPy alone would read them."""
    rows_BxK = sampler.layout(*draw(sampler, step))[0]
    for rows in (sampler.trajectories.states, sampler.trajectories.actions):
        piece_B = rows.piece_of(rows_BxK[:, 0])
        out = np.empty((*rows_BxK.shape, rows.shape[1]), np.float32)
        for piece in np.unique(piece_B):
            lines = np.flatnonzero(piece_B == piece)
            out[lines] = rows.pieces[piece][rows_BxK[lines] - rows.offsets[piece]]


def drop_pages(trajectories, folder):
    """Take the map's pages from this process, then from the page cache."""
    dont_need = 4  # MADV_DONTNEED
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for rows in (trajectories.states, trajectories.actions):
        for piece in rows.pieces:
            page = piece.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
            if madvise(page, piece.ctypes.data + piece.nbytes - page, dont_need):
                raise OSError(ctypes.get_errno(), "madvise")
    for path in folder.glob("*.arrow"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def sampler_of(trajectories):
    from dt_jax.data.segments import SegmentSampler

    return SegmentSampler(
        trajectories,
        batch_size=BATCH_SIZE,
        context_length=20,
        max_ep_len=985,
        return_scale=1000.0,
        weighting="length",
        seed=0,
    )


def in_shards(episodes):
    """The same trajectories in 18 arrays."""
    from dt_jax.data.trajectories import Trajectories

    parts = [episodes[part::18] for part in range(18)]
    lengths = np.full(len(episodes), 100)
    return Trajectories.from_arrays(
        [np.concatenate([e["states"] for e in part]) for part in parts],
        [np.concatenate([e["actions"] for e in part]) for part in parts],
        np.concatenate([e["rewards"] for part in parts for e in part]),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
    )


if __name__ == "__main__":
    main()
