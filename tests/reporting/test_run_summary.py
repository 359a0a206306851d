# SPDX-License-Identifier: Apache-2.0
"""What the prompt shows at the end fits it, and what comes next depends on the run."""

import pytest

from dt_jax.reporting.run_summary import describe_complete, describe_run

LAST = {"loss": 0.25}
SUMMARY = {
    "global_step": 1_234_567,
    "train_runtime": 98765.4,
    "train_steps_per_second": 1234.56,
    "train_samples_per_second": 79012.3,
    "train_loss": 0.28391,
}
HELD_OUT = {"mse": 0.1, "references": {"mean": 0.2, "previous": 0.3}}


@pytest.mark.parametrize("held_out", [None, HELD_OUT])
@pytest.mark.parametrize(
    ("data_path", "target", "expected"),
    [
        ("", 1500.0, ["--config.data.path=YOUR_DATASET", "--mode=export"]),
        ("data", 1500.0, ["--mode=export"]),
        ("data", None, ["--mode=evaluate", "--mode=export"]),
    ],
)
def test_what_comes_next_depends_on_the_run(
    monkeypatch, held_out, data_path, target, expected
):
    where = {"data_path": data_path, "target": target}
    monkeypatch.setattr("sys.argv", ["main.py"])
    text = describe_run("runs/base", SUMMARY, LAST, held_out, **where)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("report/index.html") == 1
    assert ("beside 0.2 of the mean action" in text) == (held_out is not None)
    after = text.partition("Next:\n")[2]
    commands = [line.split() for line in after.splitlines() if "python" in line]
    assert [words[2] for words in commands] == expected
    assert ("policy.reset(1500)" in after) == (target is not None)
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/dt-jax"])
    text = describe_run("runs/base", SUMMARY, LAST, held_out, **where)
    assert "  dt-jax --mode=export --workdir runs/base\n" in text
    assert "python main.py" not in text


def test_what_hf_cannot_be_is_not_to_be_exported():
    where = {"data_path": "", "target": None}
    for exports in (True, False):
        ends = (
            describe_run("run", SUMMARY, LAST, None, exports=exports, **where),
            describe_complete("run", 5, environment="", exports=exports),
        )
        assert [("--mode=export" in text) for text in ends] == [exports] * 2
