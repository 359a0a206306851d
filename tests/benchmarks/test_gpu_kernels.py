# SPDX-License-Identifier: Apache-2.0
"""The compiled update of a GPU: how its kernels are counted, what they must not do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks.gpu_kernels import Program, size, summarise

ROOT = Path(__file__).parents[2]
# Two kernels an update, in a loop of 40: two rows are gathered, and added somewhere.
HLO = """\
HloModule jit_call

%gathered (p0: f32[100,4], p1: s32[2,1]) -> f32[2,4] {
  %p0 = f32[100,4]{1,0} parameter(0)
  %p1 = s32[2,1]{1,0} parameter(1)
  ROOT %gather.1 = f32[2,4]{1,0} gather(%p0, %p1), offset_dims={1}
}

%scattered (q0: f32[100,4], q1: s32[2,1], q2: f32[2,4]) -> f32[100,4] {
  %q0 = f32[100,4]{1,0} parameter(0)
  %q1 = s32[2,1]{1,0} parameter(1)
  %q2 = f32[2,4]{1,0} parameter(2)
  ROOT %scatter.1 = f32[100,4]{1,0} scatter(%q0, %q1, %q2), to_apply=%add
}

%body (t: (s32[], f32[100,4], s32[2,1])) -> (s32[], f32[100,4], s32[2,1]) {
  %t = (s32[], f32[100,4]{1,0}, s32[2,1]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[100,4]{1,0} get-tuple-element(%t), index=1
  %rows = s32[2,1]{1,0} get-tuple-element(%t), index=2
  %fusion.1 = f32[2,4]{1,0} fusion(%x, %rows), kind=kLoop, calls=%gathered, \
metadata={op_name="jit(call)/while/body/h.1/gather"}
  %fusion.2 = f32[100,4]{1,0} fusion(%x, %rows, %fusion.1), kind=kInput, \
calls=%scattered
  ROOT %out = (s32[], f32[100,4]{1,0}, s32[2,1]{1,0}) tuple(%i, %fusion.2, %rows)
}

ENTRY %main (start: (s32[], f32[100,4], s32[2,1])) -> (s32[], f32[100,4], s32[2,1]) {
  %start = (s32[], f32[100,4]{1,0}, s32[2,1]{1,0}) parameter(0)
  ROOT %while.1 = (s32[], f32[100,4]{1,0}, s32[2,1]{1,0}) while(%start), \
condition=%less, body=%body, backend_config={"known_trip_count":{"n":"40"}}
}
"""


def test_kernels_and_bytes_of_an_update_on_paper():
    gather, scatter = Program(HLO).kernels
    assert (gather.kind, scatter.kind) == ("Loop", "Input")
    assert gather.origin == "h.*/gather"
    assert (gather.read_from, gather.type) == ("f32[100,4]", "f32[2,4]")
    # Two rows of four floats and two numbers are read, two rows written.
    assert gather.megabytes * 1e6 == pytest.approx(32 + 8 + 32)
    # Two rows are read where they are added, and written there.
    assert scatter.megabytes * 1e6 == pytest.approx(32 + 8 + 32 + 32)
    assert gather.microseconds == pytest.approx(1.2 + 0.28 * 72e-6)


@pytest.mark.parametrize(
    ("unique", "repeated"), [("", 1), (", unique_indices=true", 0)]
)
def test_a_scatter_whose_indices_may_repeat_is_counted(unique, repeated):
    text = HLO.replace("to_apply=%add", "to_apply=%add" + unique)
    assert summarise(Program(text), {"kernel": ["atom.add.f32"]}) == {
        "kernels": 2,
        "microseconds": 5,
        "megabytes": 0,
        "scatters with repeated indices": repeated,
        "atomics": 1,
    }


def test_an_inner_loop_counts_as_often_as_it_turns():
    outer = HLO.replace("ENTRY %main", "%turn").replace('"40"', '"3"')
    entry = (
        'ENTRY %all () -> s32[] {\n  %w = s32[] while(%a), body=%turn, {"n":"40"}\n}'
    )
    assert len(Program(f"{outer}{entry}\n").kernels) == 3 * 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("f32[64,20]", 5120),
        ("bf16[3]", 6),
        ("pred[5]", 5),
        ("s4[2]", 1),
        ("(f32[], (u8[7], token[]))", 11),
    ],
)
def test_sizes(kind, expected):
    assert size(kind) == expected


def saved():
    return json.loads((ROOT / "benchmarks" / "gpu_kernels.json").read_text())


def test_the_default_update_adds_in_one_order_and_is_small():
    found = saved()
    assert found["scatters with repeated indices"] == 0
    assert found["atomics"] == 0
    assert found["kernels"] <= 240
    assert found["microseconds"] <= 850


@pytest.mark.slow
def test_the_saved_summary_is_that_of_the_code():
    pytest.importorskip("jax_cuda13_plugin")
    expected = saved()
    if expected["jax"] != jax.__version__:
        pytest.skip(f"the summary is of jax {expected['jax']}")
    # A change that is none, so that the file stays as it is.
    changes = json.dumps({"seed": 0})
    printed = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_kernels", "--changes", changes],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    for line, key in (
        (r"(\d+) kernels per update", "kernels"),
        (r"about (\d+) us an update", "microseconds"),
        (r"(\d+) MB read and written", "megabytes"),
        (r"(\d+) scatters with repeated indices", "scatters with repeated indices"),
        (r"(\d+) kernels with atomics", "atomics"),
    ):
        found = re.search(f"^{line}", printed, re.MULTILINE)
        assert int(found[1]) == expected[key], key
