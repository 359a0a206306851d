# SPDX-License-Identifier: Apache-2.0
"""What is restored is what was saved, bit for bit, or a good step before it."""

import gc
import math
import shutil
import sys
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from dt_jax.training.checkpoint import Checkpoints, _pack, flatten, unflatten
from dt_jax.training.optimizer import make_optimizer
from dt_jax.training.train_step import TrainState, init_state

RECORD = {"seed": 3, "path": "", "floats": [0.1 + 0.2, 1e-310, 1 / 3, -0.0, 2.0**-1074]}


def make_tree(seed) -> dict:
    """A train state with the nested optimiser's, all leaves drawn at random."""
    optimizer = make_optimizer(
        total_steps=9,
        learning_rate=1e-3,
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        max_grad_norm=1.0,
        warmup_ratio=0.0,
        lr_scheduler_type="linear",
    )
    params = {
        "embed_state": {"kernel": np.zeros((5, 3), np.float32)},
        "predict_state": {"bias": np.zeros(2, np.float32)},
    }
    generator = np.random.default_rng(seed)

    def draw(leaf):
        bits = generator.integers(256, size=leaf.nbytes, dtype=np.uint8)
        return bits.view(leaf.dtype).reshape(leaf.shape)  # any bits, NaN included

    state = jax.tree.map(draw, jax.device_get(init_state(params, optimizer)))
    return {"state": state, "half": np.arange(3, dtype=np.float16)}


def save(folder, steps, limit=9):
    with closing(Checkpoints(folder, limit)) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_tree(step), RECORD | {"step": step})


def restore(folder):
    with closing(Checkpoints(folder, 9)) as checkpoints:
        return checkpoints.restore()


def bits(tree):
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}
    return {path: (x.dtype, x.shape, x.tobytes()) for path, x in leaves.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two good steps, 1 and 2; tests damage copies of them."""
    folder = tmp_path_factory.mktemp("saved")
    save(folder, [1, 2])
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_all_bits_come_back(saved):
    checkpoint = restore(saved)
    assert checkpoint.step == 2
    tree = make_tree(2)
    restored = unflatten(jax.eval_shape(lambda: tree), checkpoint.arrays)
    assert bits(restored) == bits(tree)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    assert isinstance(restored["state"], TrainState)
    assert checkpoint.record == RECORD | {"step": 2}
    assert math.copysign(1, checkpoint.record["floats"][3]) == -1


def test_the_newest_are_kept(tmp_path):
    save(tmp_path, [1, 2, 3, 4], limit=2)
    kept = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert sorted(kept) == [3, 4]
    assert restore(tmp_path).step == 4


def test_the_state_may_change_as_soon_as_it_is_saved(tmp_path, monkeypatch):
    numbers = np.arange(1000, dtype=np.float32)
    donated, changed = jnp.array(numbers), numbers.copy()
    given = {}  # to orbax, which writes it later
    save_args = ocp.args.StandardSave
    monkeypatch.setattr(
        ocp.args, "StandardSave", lambda tree: given.update(tree) or save_args(tree)
    )
    with closing(Checkpoints(tmp_path, 1)) as checkpoints:
        checkpoints.save(1, {"donated": donated, "changed": changed}, {})
        jax.jit(lambda x: x + 1, donate_argnums=0)(donated)
        changed += 1
        checkpoints.wait()
        assert donated.is_deleted()
        written = given["bytes"][-2 * numbers.nbytes :].view(np.float32).reshape(2, -1)
        for array in (*written, *checkpoints.restore().arrays.values()):
            np.testing.assert_array_equal(array, numbers)


def test_the_bytes_are_of_a_safetensors_file(tmp_path):
    across = np.float32([[1, 2], [3, 4]]).T  # in memory 1, 2, 3, 4
    packed = _pack({"across": across, "number": jnp.int32(7)})
    (tmp_path / "file").write_bytes(packed)
    found = safetensors.numpy.load_file(tmp_path / "file")
    assert {path: array.tolist() for path, array in found.items()} == {
        "['across']": [[1, 3], [2, 4]],
        "['number']": 7,
    }


def test_a_long_run_of_saves_leaves_nothing_in_memory(tmp_path):
    tree = {name: np.ones(1) for name in map(str, range(100))}
    counts = []
    with closing(Checkpoints(tmp_path, 1)) as checkpoints:
        for step in range(1, 41):
            checkpoints.save(step, tree, RECORD)
            checkpoints.wait()
            if step % 20 == 0:
                gc.collect()
                counts.append(sys.getallocatedblocks())
    # A few of each save, as caches fill, but none of each array.
    assert (counts[1] - counts[0]) / 20 < 50


def files_of(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_steps_after_one_can_be_set_aside_and_made_again(copy):
    for seed in (2, 7):  # the second time, there is one set aside before
        before = files_of(copy / "2")
        with closing(Checkpoints(copy, 9)) as checkpoints:
            checkpoints.set_aside_after(1)
            assert checkpoints.restore().step == 1
            checkpoints.save(2, make_tree(seed), {})
        assert files_of(copy / "2.damaged") == before
        assert bits(restore(copy).arrays) == bits(flatten(make_tree(seed)))


def flip_bytes(step):
    # In each of the files: orbax leaves some behind that nobody reads.
    for path in step.glob("state/**/d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def cut_short(step):
    for path in step.glob("state/**/d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def change_a_number(step):
    """What only a digest shows: a step that is whole, with another number in it."""
    tree = make_tree(2)
    tree["half"][1] = 7
    with closing(Checkpoints(step.parent / "changed", 9)) as checkpoints:
        checkpoints.save(2, tree, {})
    shutil.rmtree(step / "state")
    shutil.move(step.parent / "changed" / "2" / "state", step / "state")


def become_a_file(step):
    shutil.rmtree(step)
    step.write_text("")


def lose(item):
    return lambda step: shutil.rmtree(step / item)


DAMAGES = {
    "bytes flipped": flip_bytes,
    "files cut short": cut_short,
    "an empty folder": empty,
    "another number": change_a_number,
    "a file": become_a_file,
    "no state": lose("state"),
    "no record": lose("record"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_step_is_passed_over(copy, damage):
    damage(copy / "2")
    checkpoint = restore(copy)
    assert checkpoint.step == 1
    assert bits(checkpoint.arrays) == bits(flatten(make_tree(1)))
    assert checkpoint.record["step"] == 1


def test_an_empty_later_step_is_passed_over(copy):
    (copy / "30").mkdir()
    assert restore(copy).step == 2


def test_no_flipped_byte_is_taken_for_true(copy):
    expected = {step: bits(flatten(make_tree(step))) for step in (1, 2)}
    for path in sorted((copy / "2" / "state").glob("**/d/*")):
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 16
        path.write_bytes(flipped)
        checkpoint = restore(copy)
        assert bits(checkpoint.arrays) == expected[checkpoint.step]
        path.write_bytes(content)


def test_a_flipped_digit_of_the_record_is_seen(copy):
    path = copy / "2" / "record" / "metadata"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    assert restore(copy).step == 1


def test_a_half_written_save_is_passed_over_and_swept_up(copy):
    half = shutil.copytree(copy / "2", copy / "3.orbax-checkpoint-tmp")
    cut_short(half)
    with closing(Checkpoints(copy, None)) as checkpoints:
        assert checkpoints.restore().step == 2
    assert half.exists()  # of a run that goes on, perhaps
    save(copy, [4])
    assert not half.exists()


def raiser(error):
    def fail(*_, **__):
        raise error

    return fail


# What says nothing of the content: it must not cost a checkpoint.
PASSING = {
    "an I/O error": OSError(5, "Input/output error"),
    "no permission": PermissionError(13, "Permission denied"),
    "an I/O error in tensorstore": ValueError("UNKNOWN: ... [os_error_code='5']"),
    "no memory": MemoryError(),
    "no thread": RuntimeError("can't start new thread"),
}


@pytest.mark.parametrize("error", PASSING.values(), ids=PASSING)
def test_what_cannot_be_read_now_is_not_taken_for_damaged(copy, monkeypatch, error):
    before = files_of(copy)
    with closing(Checkpoints(copy, 9)) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", raiser(error))
        with pytest.raises(OSError, match=r"2 could not be read \(.+\); nothing has"):
            checkpoints.restore()
    assert files_of(copy) == before
    assert restore(copy).step == 2


def test_a_file_that_cannot_be_opened_is_not_taken_for_damaged(copy):
    for path in (copy / "2").glob("state/**/d/*"):
        path.unlink()
        path.symlink_to(path)  # refused by the system also to root
    with pytest.raises(OSError, match=r"2 could not be read \(Too many levels of"):
        restore(copy)


def test_a_run_may_replace_the_step_that_is_being_read(copy, monkeypatch, caplog):
    load = Checkpoints._load

    def replace_and_load(self, step):
        if step == 2:
            (copy / "2").rename(copy / "3")
        return load(self, step)

    monkeypatch.setattr(Checkpoints, "_load", replace_and_load)
    with closing(Checkpoints(copy, None)) as checkpoints:
        assert checkpoints.restore().step == 3
    assert not caplog.records  # nothing was damaged


def test_a_save_that_fails_is_told_at_the_next_and_costs_no_step(
    tmp_path, limit_files, caplog
):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, make_tree(1), RECORD)
    checkpoints.wait()
    error = pytest.raises(OSError, match=r"be saved \(.*File too large.*\); ")
    larger = make_tree(2) | {"random": np.random.default_rng(2).random(1000)}
    with limit_files(1500):
        checkpoints.save(2, larger, RECORD)
        with error as told:
            checkpoints.save(3, make_tree(3), RECORD)
    assert "\n" not in str(told.value)
    checkpoints.close()
    assert not caplog.records
    assert bits(restore(tmp_path).arrays) == bits(flatten(make_tree(1)))


def test_whatever_orbax_raises_is_told_in_one_line(tmp_path, monkeypatch):
    with closing(Checkpoints(tmp_path, 1)) as checkpoints:
        error = RuntimeError("of\nmany lines")
        monkeypatch.setattr(checkpoints._manager, "save", raiser(error))
        with pytest.raises(OSError, match=r"could not be saved \(of many lines\); "):
            checkpoints.save(1, make_tree(1), RECORD)


def test_no_good_step_is_an_error_that_says_what_to_do(copy):
    for step in (1, 2):
        flip_bytes(copy / str(step))
    with pytest.raises(ValueError, match=r"none of the checkpoints \[1, 2\] is good"):
        restore(copy)


def test_no_step_is_no_checkpoint(tmp_path):
    assert restore(tmp_path) is None


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (None, "nothing at ['a'].step, expected int32[2]"),
        (np.zeros(2, np.int64), "int64[2] at ['a'].step, expected int32[2]"),
        (np.zeros((2, 1), np.int32), "int32[2, 1] at ['a'].step, expected int32[2]"),
    ],
)
def test_arrays_that_do_not_fit_are_named(array, message):
    tree = {"a": TrainState(np.zeros(2, np.int32), {}, ())}
    arrays = {} if array is None else {"['a'].step": array}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared as a whole below)
        unflatten(tree, arrays)
    assert str(caught.value) == f"checkpoint holds {message}"
