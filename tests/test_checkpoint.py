# SPDX-License-Identifier: Apache-2.0
"""What is restored is what was saved, bit for bit, or a good step before it."""

import math
import shutil
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dt_jax.checkpoint import Checkpoints, flatten, unflatten
from dt_jax.optimizer import make_optimizer
from dt_jax.train_step import TrainState, init_state

# Reading a damaged file, tensorstore ends an event loop before its last call.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
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
    return {"state": state, "half": np.arange(3, dtype=jnp.bfloat16)}


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
        for array in (*given.values(), *checkpoints.restore().arrays.values()):
            np.testing.assert_array_equal(array, numbers)


def test_steps_after_one_can_be_forgotten_and_made_again(copy):
    with closing(Checkpoints(copy, 9)) as checkpoints:
        checkpoints.forget_after(1)
        assert checkpoints.restore().step == 1
        checkpoints.save(2, make_tree(7), {})
    assert bits(restore(copy).arrays) == bits(flatten(make_tree(7)))


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


def lose(item):
    return lambda step: shutil.rmtree(step / item)


DAMAGES = {
    "bytes flipped": flip_bytes,
    "files cut short": cut_short,
    "an empty folder": empty,
    "another number": change_a_number,
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


def test_no_good_step_is_an_error_that_says_what_to_do(copy):
    for step in (1, 2):
        flip_bytes(copy / str(step))
    with pytest.raises(ValueError, match=r"none of the checkpoints \[2, 1\] is good"):
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
