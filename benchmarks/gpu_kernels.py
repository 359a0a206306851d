# SPDX-License-Identifier: Apache-2.0
"""The kernels of an update on an H200, counted on a machine without a GPU.

    V=$(python -c "import jax; print(jax.__version__)")
    pip install --no-deps jax-cuda13-plugin==$V jax-cuda13-pjrt==$V nvidia-cuda-nvcc nvidia-nvvm
    python -m benchmarks.gpu_kernels --out before.txt
    python -m benchmarks.gpu_kernels --against before.txt
    python -m benchmarks.gpu_kernels --changes '{"data.placement": "host"}'

The train call of the default recipe at the notebook's dims is compiled for a described
H200; nothing runs. Prints the kernels of one update by where they come from and by
shape, with the bytes that each reads and writes, an estimated time, and what would add
in any order: scatters whose indices may repeat, and atomics in the PTX. XLA's flag that
makes such sums deterministic is not set; XLA_FLAGS can. `--changes` of the config are
JSON; `--hlo` reads a saved text, which has no PTX, instead of compiling. Without these
two it writes gpu_kernels.json here.

A device would tune: which matrix products go to cuBLAS and how they are tiled is a
guess here. Counts agree with an H200's profile to 3 of 354, the time to a tenth.
"""  # noqa: E501 (a command)

import argparse
import json
import math
import os
import re
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from benchmarks.tpu_compile import ACT_DIM, STATE_DIM, lower_call

HERE = Path(__file__).parent
# What cudaGetDeviceProperties says; XLA asks for no more than this.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
  l2_cache_size: 52428800 clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000 device_memory_size: 151397597184
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200 141GB HBM3e"
"""
# Microseconds of a kernel, and for each MB that it reads and writes: fitted to a
# profile of the float32 update on one H200 (jax 0.11.2; 354 kernels, 1,105 us).
PRICES = {
    "triton_nested_gemm_fusion": (1.85, 0.64),
    "Loop": (1.2, 0.28),
    "Input": (3.5, 0.53),
    "triton": (1.5, 0.26),
}
OTHER_PRICE = (5.0, 0.6)  # cuBLAS and what is left
NOT_LAUNCHED = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("opt-barrier", "partition-id", "replica-id", "async-done", "async-update"),
    *("copy-done", "all-reduce-done", "all-gather-done", "add-dependency"),
}


class Instruction(NamedTuple):
    """A line of the HLO; its type without layouts."""

    name: str
    type: str
    opcode: str
    operands: list
    text: str

    def attribute(self, pattern):
        found = re.search(pattern, self.text)
        return found[1] if found else ""

    @property
    def called(self):
        return self.attribute(r"(?:calls|to_apply|body)=%([\w.\-]+)")


class Kernel(NamedTuple):
    """One launch: its name without the number, the type of its largest operand."""

    name: str
    kind: str
    read_from: str
    type: str
    origin: str
    megabytes: float

    @property
    def microseconds(self):
        fixed, per_megabyte = PRICES.get(self.kind, OTHER_PRICE)
        return fixed + per_megabyte * self.megabytes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=json.loads, default={}, help="config keys")
    parser.add_argument("--dims", type=int, nargs=2, default=(STATE_DIM, ACT_DIM))
    parser.add_argument("--out", type=Path, help="where to save the optimised HLO")
    parser.add_argument("--hlo", type=Path, help="read this text, compile nothing")
    parser.add_argument("--against", type=Path, help="a text; list what differs")
    parser.add_argument("--top", type=int, default=45, help="lines of each table")
    args = parser.parse_args()
    text, atomics = (args.hlo.read_text(), None) if args.hlo else compile_call(args)
    if args.out:
        args.out.write_text(text)
    program = Program(text)
    summary = summarise(program, atomics)
    print(f"{summary['kernels']} kernels per update")
    print(f"about {summary['microseconds']} us an update on an H200")
    print(f"{summary['megabytes']} MB read and written")
    for kind, kernels in groups(program.kernels, lambda kernel: kernel.kind):
        time = sum(kernel.microseconds for kernel in kernels)
        print(f"{len(kernels):6d}  {kind} ({time:.0f} us)")
    table("where from", program.kernels, lambda kernel: kernel.origin, args.top)
    table("largest operand -> result", program.kernels, shapes, args.top)
    print("\nscatters")
    for scatter in program.scatters:
        repeats = "" if is_unique(scatter) else ", indices may repeat"
        print(f"  {scatter.type}{repeats}: {origin(scatter)}")
    for entry, operations in (atomics or {}).items():
        print(f"atomics in {entry}: {', '.join(operations)}")
    print(f"{summary['scatters with repeated indices']} scatters with repeated indices")
    print(f"{summary['atomics']} kernels with atomics")
    if args.against:
        compare(program.kernels, Program(args.against.read_text()).kernels)
    if not (args.hlo or args.changes or args.dims != (STATE_DIM, ACT_DIM)):
        import jax

        summary = {"jax": jax.__version__} | summary
        (HERE / "gpu_kernels.json").write_text(json.dumps(summary, indent=2) + "\n")


def compile_call(args):
    """The optimised HLO, and {kernel: its atomics} of the PTX."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_PLATFORMS"] = "cpu"  # its CUDA plugin then asks for no CUDA
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # what lies there has no PTX
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_dump_to={folder} --xla_dump_emitter_re=ptx"
        )
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from jax.experimental import topologies

        try:
            topology = topologies.get_topology_desc(
                platform="cuda", target_config=H200, topology="1x1x1"
            )
        except NotImplementedError:
            sys.exit("jax-cuda13-plugin is missing: see benchmarks/gpu_kernels.py")
        lowered = lower_call(topology.devices[:1], args.changes, dims=args.dims)
        text = lowered.compile().as_text()
        atomics = {}
        for path in sorted(Path(folder).glob("*.ptx")):
            ptx = path.read_text(errors="replace")
            if operations := re.findall(r"(?<![\w.])(?:atom|red)\.\S+", ptx):
                atomics[re.search(r"\.entry (\w+)", ptx)[1]] = operations
        return text, atomics


def summarise(program, atomics) -> dict:
    """What the test pins."""
    kernels = program.kernels
    return {
        "kernels": len(kernels),
        "microseconds": round(sum(kernel.microseconds for kernel in kernels)),
        "megabytes": round(sum(kernel.megabytes for kernel in kernels)),
        "scatters with repeated indices": sum(
            not is_unique(scatter) for scatter in program.scatters
        ),
        "atomics": "unknown" if atomics is None else len(atomics),
    }


class Program:
    """An HLO text taken apart: the kernels and scatters of one update."""

    def __init__(self, text):
        self._computations, current = {}, None
        for line in text.splitlines():
            if head := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
                current = self._computations.setdefault(head[2], {})
                if head[1]:
                    entry = head[2]
            elif current is not None and " = " in line:
                instruction = parse(line)
                current[instruction.name] = instruction
        # The updates are the largest loop's turns; one alone has no loop.
        loops = [
            list(self._launches(instruction.called))
            for instruction in self._computations[entry].values()
            if instruction.opcode == "while"
        ]
        launches = max(loops or [list(self._launches(entry))], key=len)
        self.kernels = [self._kernel(*launch) for launch in launches]
        self.scatters = [
            scatter for _, launch in launches for scatter in self._scatters(launch)
        ]

    def _launches(self, computation):
        """(computation, instruction) of each launch; a loop's as often as it turns."""
        for instruction in self._computations[computation].values():
            if instruction.opcode in ("call", "async-start"):
                yield from self._launches(instruction.called)
            elif instruction.opcode == "while":
                turns = instruction.attribute(r'known_trip_count":\{"n":"(\d+)"')
                yield from list(self._launches(instruction.called)) * int(turns or 1)
            elif instruction.opcode == "conditional":
                branches = instruction.attribute(r"(?:branch|true)_computations?=(.*)")
                for branch in re.findall(r"%([\w.\-]+)", branches.split("}")[0]):
                    yield from self._launches(branch)
            elif instruction.opcode not in NOT_LAUNCHED:
                yield computation, instruction

    def _kernel(self, computation, instruction):
        types = [
            self._computations[computation][name].type for name in instruction.operands
        ]
        if instruction.opcode == "fusion":
            kind = instruction.attribute(r'"kind":"_*(\w+)"')
            kind = kind or instruction.attribute(r"kind=k(\w+)")
            read = sum(self._read(instruction.called, n) for n in range(len(types)))
            written = self._written(instruction.called)
        else:
            target = instruction.attribute(r'custom_call_target="([^"]*)"')
            kind = target or instruction.opcode
            read = sum(map(size, types))
            # The bytes among cuBLAS's results are its workspace.
            written = size(re.sub(r"s8\[\d+\]", "", instruction.type))
        return Kernel(
            name=re.sub(r"([._]\d+)+$", "", instruction.name),
            kind=kind,
            read_from=max(types, key=size, default=""),
            type=re.sub(r"s8\[\d+\]", "workspace", instruction.type),
            origin=origin(instruction),
            megabytes=(read + written) / 1e6,
        )

    def _scatters(self, instruction):
        if instruction.opcode in ("scatter", "select-and-scatter"):
            yield instruction
        if instruction.opcode == "fusion":
            for inner in self._computations[instruction.called].values():
                yield from self._scatters(inner)

    def _read(self, computation, number):
        """Bytes that a fusion reads of its argument `number`."""
        for value in self._computations[computation].values():
            if value.attribute(r" parameter\((\d+)\)") == str(number):
                return self._read_of(computation, value)
        return 0

    def _read_of(self, computation, value):
        """Of a slice or a gather only what it takes; nothing of what is overwritten."""
        total = 0
        for user in self._computations[computation].values():
            if value.name not in user.operands:
                continue
            first = user.operands[0] == value.name
            if user.opcode in ("bitcast", "reshape"):
                total += self._read_of(computation, user)
            elif user.opcode in ("slice", "dynamic-slice", "gather") and first:
                total += size(user.type)
            elif user.opcode == "scatter" and first:
                total += size(self._computations[computation][user.operands[-1]].type)
            elif user.opcode == "fusion":
                for number, operand in enumerate(user.operands):
                    if operand == value.name:
                        total += self._read(user.called, number)
            elif not (user.opcode == "dynamic-update-slice" and first):
                total += size(value.type)
        return min(total, size(value.type))

    def _written(self, computation):
        values, total = self._computations[computation], 0
        root = next(v for v in values.values() if v.text.lstrip().startswith("ROOT"))
        names = root.operands if root.opcode == "tuple" else [root.name]
        for value in map(values.get, names):
            while value.opcode == "bitcast":
                value = values[value.operands[0]]
            if value.opcode == "dynamic-update-slice":
                value = values[value.operands[1]]
            elif value.opcode == "scatter":
                value = values[value.operands[-1]]
            total += size(value.type)
        return total


def parse(line) -> Instruction:
    name, rest = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = (.*)", line).groups()
    kind, rest = cut(rest, " ")
    opcode, rest = rest.split("(", 1)
    inside, _ = cut(rest, ")")
    kind = re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", kind)
    operands = re.findall(r"%([\w.\-]+)", inside)
    return Instruction(name, kind, opcode, operands, line)


def cut(text, end):
    """What stands before and after the first `end` that is in no brackets."""
    depth = 0
    for place, letter in enumerate(text):
        if letter == end and depth == 0:
            return text[:place], text[place + 1 :]
        depth += (letter in "([{") - (letter in ")]}")
    return text, ""


def size(kind) -> float:
    """Bytes of an HLO type, 'f32[64,20]' or a tuple of such."""
    total = 0
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", kind):
        bits = re.search(r"\d+", dtype)
        itemsize = int(bits[0]) / 8 if bits else dtype == "pred"
        total += itemsize * math.prod(int(dim) for dim in dims.split(",") if dim)
    return total


def is_unique(scatter) -> bool:
    return "unique_indices=true" in scatter.text


def origin(instruction) -> str:
    """Its `op_name` without what JAX adds; the layers taken together."""
    name = instruction.attribute(r'op_name="([^"]*)"')
    name = re.sub(r"^jit\(\w+\)/|(while/body|closed_call|shard_map)/", "", name)
    return re.sub(r"(\bh[._])\d+", r"\1*", name) or "(none)"


def shapes(kernel) -> str:
    results = Counter(re.findall(r"\w+\[[\d,]*\]", kernel.type))
    results = ", ".join(f"{n}x {r}" if n > 1 else r for r, n in results.items())
    return f"{kernel.name}: {kernel.read_from} -> {results}"


def groups(kernels, key):
    """(what `key` says, the kernels of which it does), the most frequent first."""
    found = defaultdict(list)
    for kernel in kernels:
        found[key(kernel)].append(kernel)
    return sorted(found.items(), key=lambda group: (-len(group[1]), group[0]))


def table(title, kernels, key, top):
    print(f"\n{'count':>6s}{'MB':>9s}{'us':>7s}  {title}")
    found = groups(kernels, key)
    rest = [kernel for _, group in found[top:] for kernel in group]
    for name, group in [*found[:top], *([("the rest", rest)] if rest else [])]:
        megabytes = sum(kernel.megabytes for kernel in group)
        time = sum(kernel.microseconds for kernel in group)
        print(f"{len(group):6d}{megabytes:9.2f}{time:7.1f}  {name}")


def compare(ours, theirs):
    """How often each kernel that the two programs have in different numbers."""
    ours, theirs = Counter(map(shapes, ours)), Counter(map(shapes, theirs))
    print(f"\n{ours.total()} kernels, {theirs.total()} in the other program")
    for name in sorted(ours | theirs):
        if ours[name] != theirs[name]:
            print(f"{ours[name]:6d}{theirs[name]:6d}  {name}")


if __name__ == "__main__":
    main()
