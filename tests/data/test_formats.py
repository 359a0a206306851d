# SPDX-License-Identifier: Apache-2.0
"""Each format, written by its own library, becomes the episodes that went in."""

import json
import os
import sys
from pathlib import Path

import datasets
import gymnasium
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_readers import A, S, make_columns, make_episodes

from dt_jax.acting.checked_env import CheckedEnv
from dt_jax.data.episodes import describe_actions
from dt_jax.data.formats import d4rl, parquet
from dt_jax.data.formats.minari import flatten_steps
from dt_jax.data.readers import load_trajectories
from dt_jax.data.trajectories import Trajectories

h5py = pytest.importorskip("h5py")
EXAMPLES = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")  # no author, ..
ANY = spaces.Box(-np.inf, np.inf, (S,), np.float32)
MOVES = spaces.Box(-9, 9, (A,), np.float32)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


@pytest.fixture
def at(tmp_path_factory):
    """() -> an empty folder of its own."""
    return lambda: tmp_path_factory.mktemp("at")


def write_d4rl(path, episodes, rest=0, **columns):
    """All steps end to end; of the last episode the last `rest` steps are not ended."""
    flat = {
        name: np.concatenate([episode[name] for episode in episodes])
        for name in ("observations", "actions", "rewards")
    }
    ends = np.concatenate([episode["dones"] for episode in episodes])
    by_time = np.arange(len(ends)) % 2 == 1
    flat |= {"terminals": ends & ~by_time, "timeouts": ends & by_time} | columns
    with h5py.File(path, "w") as file:
        for name, values in flat.items():
            if values is not None:
                file.create_dataset(name, data=values, compression="gzip")
        file.create_dataset("infos/qpos", data=flat["observations"])
    return path


def write_d3rlpy(path, episodes):
    """As its `ReplayBuffer.dump` does it, which needs torch."""
    with h5py.File(path, "w") as file:
        keys = ["observations", "actions", "rewards", "terminated"]
        file.create_dataset("columns", data=keys)
        file.create_dataset("num_episodes", data=len(episodes))
        for number, episode in enumerate(episodes):
            columns = episode | {
                "rewards": episode["rewards"][:, None],
                "terminated": bool(number % 2),
            }
            for key in keys:
                file.create_dataset(f"{key}_{number}", data=columns[key])
        file.create_dataset("version", data="2.1")
    return path


def write_minari(name, episodes, data_format, space=ANY, observe=None, **options):
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for number, episode in enumerate(episodes):
        after = episode["observations"][-1:] + 1  # after the last action
        observations = np.concatenate([episode["observations"], after])
        ends = {"terminations": episode["dones"], "truncations": episode["dones"] & 0}
        if number % 2:
            ends = dict(zip(ends, reversed(ends.values()), strict=True))
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=observe(observations) if observe else observations,
                actions=episode["actions"],
                rewards=episode["rewards"].astype(np.float64),
                **{key: flags.astype(bool) for key, flags in ends.items()},
            )
        )
    options = {"observation_space": space, "action_space": MOVES} | options
    minari.create_dataset_from_buffers(
        name, buffers, data_format=data_format, description="of a test", **options
    )
    return name


def assert_same(found, episodes):
    """Every number is that of `from_episodes`."""
    expected = Trajectories.from_episodes(episodes)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, values in theirs.items():
            np.testing.assert_array_equal(mine[name], values, err_msg=name)
    # Sums in double precision in another order.
    close = {"rtol": 1e-12, "atol": 1e-12}
    mine, theirs = found.returns_to_go, expected.returns_to_go
    np.testing.assert_allclose(mine, theirs, **close)
    close = {"rtol": 1e-6, "atol": 1e-7}  # rounded to float32
    np.testing.assert_allclose(found.state_mean, expected.state_mean, **close)
    np.testing.assert_allclose(found.state_std, expected.state_std, **close)


@given(lengths=LENGTHS, block=st.sampled_from([1, 100, 1 << 20]))
@EXAMPLES
def test_d4rl(at, lengths, block):
    episodes = make_episodes(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(d4rl, "BLOCK_BYTES", block)
        found = load_trajectories(write_d4rl(at() / "mine.hdf5", episodes))
    assert_same(found, episodes)
    assert found.about["format"] == "D4RL's HDF5"
    assert not {"score_range", "environment", "left_out"} & set(found.about)


@given(lengths=LENGTHS)
@EXAMPLES
def test_d3rlpy(at, lengths):
    episodes = make_episodes(lengths)
    assert_same(load_trajectories(write_d3rlpy(at() / "buffer.h5", episodes)), episodes)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@given(lengths=LENGTHS, by_id=st.booleans())
@settings(EXAMPLES, max_examples=3)
def test_minari(at, data_format, lengths, by_id):
    episodes, root = make_episodes(lengths), at()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        name = write_minari("mine/pen/human-v2", episodes, data_format)
        found = load_trajectories(name if by_id else root / name)
    assert_same(found, episodes)
    source = name if by_id else str(root / name)
    expected = {"format": "Minari", "source": source, "observations": ""}
    assert found.about == expected | describe_actions(MOVES)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_minaris_choices_are_discrete_actions_from_0_on(data_format):
    episodes = make_episodes((3, 2))
    chosen = [np.array([-1, 1, 0]), np.array([1, 1])]
    given = [
        episode | {"actions": actions}
        for episode, actions in zip(episodes, chosen, strict=True)
    ]
    moves = spaces.Discrete(3, start=-1)
    found = load_trajectories(
        write_minari("mine/choices-v0", given, data_format, action_space=moves)
    )
    assert found.action_sizes == (3,)
    assert [found[i]["actions"].ravel().tolist() for i in (0, 1)] == [[0, 2, 1], [2, 2]]


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_minari_of_several_parts_is_flattened_as_environments_are(data_format):
    space = spaces.Dict(
        {
            "where": spaces.Tuple([spaces.Discrete(3, start=1), ANY]),
            "a": spaces.MultiDiscrete([2, 3]),
            "matrix": spaces.Box(-9, 9, (2, 2), np.float32),
        }
    )
    space.seed(0)
    seen = [[space.sample() for _ in range(n + 1)] for n in (3, 1)]

    def columns(steps):  # an array of all steps for each part
        return {
            "where": tuple(
                np.array(x) for x in zip(*(s["where"] for s in steps), strict=True)
            ),
            "a": np.array([s["a"] for s in steps]),
            "matrix": np.array([s["matrix"] for s in steps]),
        }

    given = iter(seen)
    episodes = make_episodes((3, 1))
    name = write_minari(
        "parts-v0", episodes, data_format, space, lambda _: columns(next(given))
    )

    class Env(gymnasium.Env):
        observation_space, action_space = space, MOVES

    environment = CheckedEnv(Env())
    for episode, steps in zip(episodes, seen, strict=True):
        flat = [environment._vector(step) for step in steps[:-1]]
        episode["observations"] = np.array(flat)
    found = load_trajectories(name)
    assert_same(found, episodes)
    assert found.about["observations"] == environment.layout != ""
    image = spaces.Dict({"eye": spaces.Box(0, 255, (2, 2, 3), np.uint8)})
    eyes = {"eye": np.zeros((2, 2, 2, 3), np.uint8)}
    name = write_minari(
        "image-v0", make_episodes((1,)), data_format, image, lambda _: eyes
    )
    with pytest.raises(
        ValueError, match=r"its observations hold Box.*expected vectors"
    ):
        load_trajectories(name)


def test_one_hot_of_every_dimension():
    space = spaces.MultiDiscrete([2, 3])
    expected = [spaces.flatten(space, np.array(x)) for x in ([0, 2], [1, 0])]
    found = flatten_steps(space, [[0, 2], [1, 0]])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(expected[0], [1, 0, 0, 0, 1])


def test_minari_knows_its_environment():
    spec = gymnasium.spec("Pendulum-v1")
    spec.kwargs = {"g": 9.0}
    options = {"env": spec, "ref_min_score": -1200.0, "ref_max_score": -150.0}
    name = write_minari("known-v0", make_episodes(), "hdf5", **options)
    about = load_trajectories(name).about
    assert about["environment"] == "Pendulum-v1"
    assert json.loads(about["environment_kwargs"]) == {"g": 9.0}
    assert about["score_range"] == [-1200, -150]
    assert about["actions"] == "Box(-9.0, 9.0, (2,), float32)"
    assert about["action_bounds"] == [[-9, -9], [9, 9]]
    # Of another package: importing it makes the id known.
    file = Path(os.environ["MINARI_DATASETS_PATH"], name, "data", "metadata.json")
    metadata = json.loads(file.read_text())
    spec = {"id": "Pen-v1", "entry_point": "robotics.envs.pen:Pen", "kwargs": {}}
    file.write_text(json.dumps(metadata | {"eval_env_spec": json.dumps(spec)}))
    with pytest.MonkeyPatch.context() as patch:  # gymnasium's own parser wants all keys
        import minari

        patch.setattr(
            minari.dataset.minari_dataset.EnvSpec, "from_json", lambda text: None
        )
        about = load_trajectories(name).about
    assert about["environment"] == "robotics:Pen-v1"


@given(lengths=LENGTHS, struct=st.booleans(), fixed=st.booleans())
@EXAMPLES
def test_parquet(at, lengths, struct, fixed):
    episodes, folder = make_episodes(lengths), at()
    rows = [{k: v.tolist() for k, v in e.items()} for e in episodes]
    step = pa.list_(pa.float32(), S) if fixed else pa.list_(pa.float32())
    kind = pa.struct(
        {
            "observations": pa.large_list(step) if fixed else pa.list_(step),
            "actions": pa.list_(pa.list_(pa.float32())),
            "rewards": pa.list_(pa.float32()),
            "dones": pa.list_(pa.bool_()),
        }
    )
    array = pa.array(rows, kind)
    table = pa.table({"train": array}) if struct else pa.Table.from_struct_array(array)
    half = (len(rows) + 1) // 2
    (folder / "default" / "train").mkdir(parents=True)
    pq.write_table(table[:half], folder / "default" / "train" / "0000.parquet")
    pq.write_table(table[half:], folder / "default" / "train" / "0001.parquet")
    pq.write_table(table, folder / "one.parquet")
    assert_same(load_trajectories(folder / "one.parquet"), episodes)
    (folder / "one.parquet").unlink()
    assert_same(load_trajectories(folder), episodes)


def test_which_files_are_of_a_split(tmp_path):
    names = ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"]
    for name in names:
        (tmp_path / f"{name}.parquet").touch()
    for split, count in (("train", 2), ("test", 1)):
        assert len(parquet.files(tmp_path, split)) == count
    with pytest.raises(ValueError, match="splits test, train, expected 'valid'"):
        parquet.files(tmp_path, "valid")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "rows.parquet").touch()
    assert len(parquet.files(tmp_path / "flat", "train")) == 1


def test_the_hub_s_own_writer(tmp_path):
    dataset = datasets.Dataset.from_dict(make_columns())
    dataset.to_parquet(tmp_path / "data.parquet")
    mine = load_trajectories(tmp_path / "data.parquet")
    theirs = [{key: np.array(values) for key, values in row.items()} for row in dataset]
    for episode in theirs:  # stored as float64; what was made is float32
        for key in ("observations", "actions", "rewards"):
            episode[key] = episode[key].astype(np.float32)
    assert_same(mine, theirs)


def test_d4rl_without_timeouts_is_cut_at_the_horizon(tmp_path):
    # Maze2d's episodes have 300 steps: 2 whole ones, one ended early, 5 steps left.
    lengths = (300, 300, 7, 5)
    episodes = make_episodes(lengths)
    ends = np.zeros(sum(lengths), bool)
    ends[606] = True
    path = tmp_path / "maze2d-umaze-v1.hdf5"
    write_d4rl(path, episodes, terminals=ends, timeouts=None)
    found = load_trajectories(path)
    assert_same(found, episodes[:3])
    assert found.about["left_out"] == "the last 5 steps, an episode without end"
    assert found.about["score_range"] == [23.85, 161.86]
    assert "environment" not in found.about


@pytest.mark.parametrize(
    ("name", "scores", "environment"),
    [
        ("hopper_medium-v2", (-20.272305, 3234.3), "Hopper-v4"),
        ("halfcheetah-medium-expert-v0", (-280.178953, 12135), "HalfCheetah-v4"),
        ("walker2d_full_replay-v2", (1.629008, 4592.3), "Walker2d-v4"),
        ("ant_random", (-325.6, 3879.7), ""),
        ("pen-v0_demos_clipped", (96.262799, 3076.8331017826877), ""),
        ("maze2d-large-sparse-v1", (6.7, 273.99), ""),
        (
            "bullet-hopper_medium_replay",
            (20.058972, 1441.8059623430963),
            "pybullet_envs_gymnasium:HopperBulletEnv-v0",
        ),
        ("maze2d-umaze-dense-v1", None, None),
        ("Ant_maze_big-maze_noisy", None, None),
        ("antelope-v1", None, None),
        ("hopper", None, None),
    ],
)
def test_names_of_d4rl(name, scores, environment):
    known = d4rl.known_by_name(name)
    if scores is None:
        assert known is None
    else:
        assert (known.score_range, known.environment) == (scores, environment)


def test_a_d4rl_file_knows_its_environment(tmp_path):
    episodes = make_episodes()
    path = write_d4rl(tmp_path / "hopper_medium-v2.hdf5", episodes)
    about = load_trajectories(path).about
    assert about["environment"] == "Hopper-v4"
    assert about["environment_kwargs"] == "{}"


def no_ends(path):
    write_d4rl(path, make_episodes(), terminals=None, timeouts=None)


def cut_short(path):
    write_d4rl(path, make_episodes())
    path.write_bytes(path.read_bytes()[:-300])


def one_column_short(path):
    write_d4rl(path, make_episodes(), rewards=np.zeros(3, np.float32))


def another(path):
    with h5py.File(path, "w") as file:
        file["weights"] = 1.0


def of_tuples(path):
    with h5py.File(path, "w") as file:
        file["columns"], file["num_episodes"] = ["observations"], 1
        file["observations_0_0"] = np.zeros((2, 2))


def bad_number(path):
    rewards = np.zeros(24, np.float32)
    rewards[3] = np.nan
    write_d4rl(path, make_episodes(), rewards=rewards)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.hdf5", no_ends, "none of its 24 steps ends an episode"),
        ("a.hdf5", cut_short, r"not a readable HDF5 file \(.*truncated"),
        ("a.hdf5", one_column_short, "'rewards' has 3 steps, but .* has 24"),
        ("a.hdf5", another, "found weights in the file, expected observations"),
        ("a.hdf5", of_tuples, "observations are tuples"),
        ("a.hdf5", bad_number, "trajectory 1: column 'rewards' holds nan at step 0"),
        (
            "a.parquet",
            lambda path: path.write_text("text"),
            r"not a readable Parquet file \(a.parquet",
        ),
        (
            "a.parquet",
            lambda path: pq.write_table(pa.table({"reward": [1.0]}), path),
            "found the columns reward, none of lists; expected a trajectory a row",
        ),
        (
            "a.parquet",
            lambda path: pq.write_table(pa.table({"actions": [None, [1.0]]}), path),
            r"trajectory 0: column 'actions' has an empty \(null\) value",
        ),
    ],
)
def test_faults_are_one_line_and_leave_nothing(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message) as caught:
        load_trajectories(tmp_path / name)
    assert str(caught.value).startswith(f"path={tmp_path / name}: ")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [name]


def test_faults_of_minari(tmp_path):
    with pytest.raises(FileNotFoundError, match="minari download D4RL/pen/human-v2"):
        load_trajectories("D4RL/pen/human-v2")
    name = write_minari("cut-v0", make_episodes(), "hdf5")
    file = tmp_path / "minari" / name / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:-900])
    with pytest.raises(ValueError, match=r"path=cut-v0: .*not a readable Minari"):
        load_trajectories(name)


@pytest.mark.parametrize("package", ["h5py", "minari"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    if package == "minari":
        path = write_minari("mine-v0", make_episodes(), "hdf5")
    else:
        path = write_d4rl(tmp_path / "a.hdf5", make_episodes())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"pip install '?{package}.*dt-jax\["):
        load_trajectories(path)
