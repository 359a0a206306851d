# SPDX-License-Identifier: Apache-2.0
"""Stored statistics that are not of the data are found; those that are never are."""

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dt_jax.data import statistics
from dt_jax.data.readers import load_trajectories
from dt_jax.data.trajectories import Trajectories
from dt_jax.data.writer import save_trajectories
from dt_jax.trading.simulation import simulated_episodes


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def misfit_of(states, mean, std, lengths=None):
    """Of states as they lie, NxS, in trajectories of these lengths (1 each)."""
    states_NxS = np.asarray(states)
    lengths = np.ones(len(states_NxS), int) if lengths is None else np.array(lengths)
    return (
        Trajectories.from_arrays(
            [states_NxS],
            [np.zeros((len(states_NxS), 1), np.float32)],
            np.zeros(len(states_NxS)),
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            state_mean=np.float32(mean),
            state_std=np.float32(std),
        )
        .facts()
        .misfit
    )


def test_on_paper():
    # Ten trajectories of -1 and ten of 1, twice: mean 0, std 1. The standard error of
    # the mean is sqrt(1/19) = 0.229; for 19 degrees of freedom six of them become
    # sqrt(19 * (exp(36/19) - 1)) = 10.4, so with the tenth it may be off by 2.48.
    states_NxS = np.repeat([[-1.0, -1.0], [1.0, 1.0]], 10, axis=0)
    assert misfit_of(states_NxS, [0, 0], [1, 1]) is None
    assert misfit_of(states_NxS, [0, 2.47], [1, 1]) is None
    found = misfit_of(states_NxS, [0, 2.49], [1, 1])
    assert (found.features, found.worst) == (1, 1)
    assert (found.stored_mean, found.stored_std) == (np.float32(2.49), 1.0)
    assert (found.found_mean, found.found_std) == (0.0, 1.0 + 1e-6)
    # Its squares are all alike, so their error is 0; a fifth of the variance is left.
    assert misfit_of(states_NxS, [0, 0], [1, 1.1]) is None
    assert misfit_of(states_NxS, [0, 0], [1, 1.13]).worst == 1
    found = misfit_of(states_NxS, [5, 9], [0.5, 0.01])
    assert (found.features, found.worst) == (2, 1)


def test_one_trajectory_tells_little_but_for_what_spans_more_than_a_hundred():
    states_NxS = np.arange(11.0)[:, None]
    assert misfit_of(states_NxS, [50], [1], lengths=[11]) is None
    assert misfit_of(states_NxS, [5], [0.11], lengths=[11]) is None
    assert misfit_of(states_NxS, [5], [0.09], lengths=[11]).worst == 0


def test_a_feature_that_never_changes_may_have_any_std_but_not_any_mean():
    states_NxS = np.full((50, 2), 12345.678)  # not a float32
    for std in (1e-6, 1.0, 100.0):
        assert misfit_of(states_NxS, [12345.678] * 2, [std] * 2) is None
    assert misfit_of(states_NxS, [12345.678, 12345.0], [1e-6] * 2).worst == 1


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    sampled=st.sampled_from([1, 10, 100, 1 << 12]),
)
def test_right_statistics_are_never_found_wrong_however_few_rows_are_sampled(
    data, lengths, sampled
):
    numbers = np.random.default_rng(data.draw(st.integers(0, 999)))
    scale = 10.0 ** numbers.integers(-6, 6, size=4)
    states_NxS = numbers.standard_t(1, size=(sum(lengths), 4)) * scale + scale[::-1]
    states_NxS[:, 0] = states_NxS[0, 0]
    states_NxS = states_NxS.astype(data.draw(st.sampled_from(["f4", "f8"])))
    exact = states_NxS.astype(np.float64)
    mean, std = exact.mean(axis=0), exact.std(axis=0) + 1e-6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "SAMPLED_ROWS", sampled)
        assert misfit_of(states_NxS, mean, std, lengths) is None


def test_a_sample_finds_what_all_rows_show(monkeypatch):
    # Regular trajectories, with which a sample at regular places would fall in step.
    numbers = np.random.default_rng(0)
    steps_NxS = np.tile(np.arange(50.0), 2000)[:, None]
    states_NxS = np.float32(steps_NxS + numbers.normal(size=(100_000, 3)))
    mean, std = states_NxS.mean(axis=0), states_NxS.std(axis=0)
    lengths, off = [50] * 2000, np.array([0, 0, 80])
    for sampled in (2000, 10_000):
        with monkeypatch.context() as patch:
            patch.setattr(statistics, "SAMPLED_ROWS", sampled)
            patch.setattr(statistics, "mean_and_std", None)  # no second pass is made
            assert misfit_of(states_NxS, mean, std, lengths) is None
        monkeypatch.setattr(statistics, "SAMPLED_ROWS", sampled)
        found = misfit_of(states_NxS, mean + off, std * [1, 1.4, 1], lengths)
        assert (found.features, found.worst) == (2, 2)


def make_episodes(offset, num=30, seed=0):
    numbers = np.random.default_rng(seed)
    return [
        {
            "observations": offset + numbers.normal(0, [1, 10, 0.1], size=(20, 3)),
            "actions": numbers.uniform(-1, 1, size=(20, 1)),
            "rewards": numbers.normal(size=20),
        }
        for _ in range(num)
    ]


def test_joined_and_reordered_datasets_are_found_and_computed_anew(tmp_path):
    for name, offset in (("one", 0.0), ("other", [0.0, 100.0, 0.0])):
        save_trajectories(tmp_path / name, make_episodes(offset))
    one, other = (datasets.load_from_disk(tmp_path / n) for n in ("one", "other"))
    assert load_trajectories(one).facts().misfit is None
    assert load_trajectories(one.select(range(5))).facts().misfit is None
    joined = datasets.concatenate_datasets([one, other])
    found = load_trajectories(joined).facts().misfit
    assert (found.features, found.worst) == (1, 1)
    assert found.found_mean == pytest.approx(50, abs=1)
    anew = load_trajectories(joined, statistics="computed")
    assert anew.facts().misfit is None
    assert anew.state_mean[1] == np.float32(found.found_mean)
    assert anew.state_std[1] == np.float32(found.found_std)
    # The rows of the three features now stand for one another; saved, for good.
    rows = [2, 0, 1, *range(3, 30)]
    one.select(rows).save_to_disk(tmp_path / "ordered")
    found = load_trajectories(tmp_path / "ordered").facts().misfit
    assert (found.features, found.worst) == (3, 2)
    # Zeros of the padding are no std: refused, unless they are not to be read.
    one.select(range(29, -1, -1)).save_to_disk(tmp_path / "reversed")
    with pytest.raises(ValueError, match=r"0\.0 .*; .*statistics=computed has both"):
        load_trajectories(tmp_path / "reversed")
    anew = load_trajectories(tmp_path / "reversed", statistics="computed")
    np.testing.assert_allclose(anew.state_std, [1, 10, 0.1], rtol=0.1)


def test_our_own_market_fits(tmp_path):
    save_trajectories(tmp_path / "market", simulated_episodes())
    store = load_trajectories(tmp_path / "market", wait=False)
    assert store.facts().misfit is None


def test_other_words_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^statistics='mine': expected stored or c"):
        load_trajectories(tmp_path, statistics="mine")
