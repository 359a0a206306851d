# SPDX-License-Identifier: Apache-2.0
"""All episodes of a dataset, end to end in flat arrays, validated once.

Readers and callers bring arrays in (possibly memory maps, in several pieces); what
leaves is read-only: where each trajectory starts, how long it is, its returns-to-go,
and the statistics of the states. Nothing here copies the states or knows a file format.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xxhash

from dt_jax.data.episodes import (
    Episode,
    count_choices,
    is_discrete,
    read_episodes,
    refuse_empty,
)
from dt_jax.data.rows import Rows
from dt_jax.data.scan import check_finite, combine, is_finite, scan
from dt_jax.data.statistics import Comparison, Misfit, mean_and_std


class Facts(NamedTuple):
    """What a pass over all steps has found, their values being finite float32.

    state_min, state_max: S; action_min, action_max: A float64, over all steps. digests:
    E uint64, equal for trajectories of equal content. misfit: where the dataset's own
    statistics are not those of its states.
    """

    state_min: np.ndarray
    state_max: np.ndarray
    action_min: np.ndarray
    action_max: np.ndarray
    digests: np.ndarray
    misfit: Misfit | None


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories:
    """A validated dataset of E trajectories with N stored steps.

    `len()` is E, and `[i]` is trajectory i as a dict: states TxS, actions TxA, rewards
    T and, where there are any, dones T, none of them a copy.

    Attributes:
      states: NxS and actions: NxA `Rows`, in the precision they are stored in; of
        discrete actions NxM whole numbers, a column for each of their dimensions.
      rewards: N float32. dones: N bool, or None when the dataset has none.
      returns_to_go: N float64, discounted as asked, unscaled (see `relative_to`);
        float64 so that dividing by the return scale rounds once, as Hugging Face's
        collator does.
      starts, lengths: E int64, where in N each trajectory lies.
      state_mean, state_std: S float32, the dataset's own or computed.
      action_sizes: the choices of each dimension of discrete actions, else ().
      discounted: a discount -> N float64, the returns-to-go discounted by it.
      action_range: () -> (minimum A, maximum A) float64, over all steps; known long
        before `facts`.
      facts: () -> Facts; waits for the check of the values, and raises a ValueError
        where one is at fault.
      about: where they come from, where the dataset says it: the `environment`, its
        `environment_kwargs` where it can be made again (JSON), the space of its
        `observations` before they were flattened and that of its `actions`, with
        their `action_bounds`, the `benchmark` of trading `Rules` beyond which rewards
        are gained, the `score_range` by which returns are normalised, and of what was
        converted the `format`, the `source` and what was `left_out`.
    """

    states: Rows
    actions: Rows
    rewards: np.ndarray
    dones: np.ndarray | None
    returns_to_go: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    state_mean: np.ndarray
    state_std: np.ndarray
    action_sizes: tuple[int, ...]
    discounted: Callable[[float], np.ndarray]
    action_range: Callable[[], tuple[np.ndarray, np.ndarray]]
    facts: Callable[[], Facts]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"trajectory {index} of {len(self)}")
        start, length = int(self.starts[index]), int(self.lengths[index])
        steps = slice(start, start + length)
        episode = {
            "states": self.states.slice(start, start + length),
            "actions": self.actions.slice(start, start + length),
            "rewards": self.rewards[steps],
        }
        return episode if self.dones is None else episode | {"dones": self.dones[steps]}

    def __repr__(self) -> str:
        return (
            f"Trajectories({len(self):,} trajectories, {self.num_steps:,} steps, "
            f"state_dim {self.state_dim}, act_dim {self.act_dim})"
        )

    @property
    def num_trajectories(self) -> int:
        return len(self.lengths)

    @property
    def num_steps(self) -> int:
        return int(self.lengths.sum())

    @property
    def state_dim(self) -> int:
        return self.states.shape[1]

    @property
    def act_dim(self) -> int:
        """A, as the model sees actions: of discrete ones all choices together."""
        return sum(self.action_sizes) or self.actions.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the states and actions as stored."""
        return self.states.nbytes + self.actions.nbytes

    def fingerprint(self) -> str:
        """A digest of everything training reads: resuming compares it."""
        digest = xxhash.xxh3_128()
        for array in (
            self.facts().digests,
            self.lengths,
            self.state_mean,
            self.state_std,
            self.returns_to_go[self.starts],
        ):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def select(self, episodes) -> "Trajectories":
        """These trajectories alone: an index or mask over E, the rows shared.

        The statistics and ranges of states and actions stay those of the whole data.
        """
        facts = self.facts()
        facts = facts._replace(digests=facts.digests[episodes])
        return replace(
            self,
            starts=self.starts[episodes],
            lengths=self.lengths[episodes],
            facts=lambda: facts,
        )

    def split(self, fraction: float) -> tuple["Trajectories", "Trajectories | None"]:
        """Training and held-out trajectories; equal ones never stand on both sides.

        The digests decide, so the order of the trajectories is of no consequence. The
        held-out share comes as near to `fraction` of E as whole groups of equal
        trajectories, taken or left in turn, allow. At 0 this is (self, None).

        Raises:
          ValueError: the fraction is not in [0, 1), or one side would be empty.
        """
        if not 0.0 <= fraction < 1.0:
            raise ValueError(
                f"validation_fraction={fraction}: expected 0 to 1, 1 excluded"
            )
        if not fraction:
            return self, None
        _, group_E, sizes = np.unique(
            self.facts().digests, return_inverse=True, return_counts=True
        )
        held_out = np.zeros(len(sizes), bool)
        missing = fraction * self.num_trajectories
        for group, size in enumerate(sizes):
            if size < 2 * missing:  # with it the share is nearer than without it
                held_out[group] = True
                missing -= size
        if held_out.all() or not held_out.any():
            raise ValueError(
                f"validation_fraction={fraction} of {self.num_trajectories} "
                f"trajectories ({len(sizes)} different ones) leaves none to "
                f"{'train on' if held_out.all() else 'hold out'}; expected a fraction "
                "that leaves at least one on each side"
            )
        return self.select(~held_out[group_E]), self.select(held_out[group_E])

    def best(self, share: float) -> np.ndarray:
        """The trajectories with the highest returns, int64, in the order of the data:
        as few as hold this share of the steps; of equal returns the digests decide.

        Raises:
          ValueError: the share is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"keep_best={share}: expected above 0, at most 1")
        if share == 1:
            return np.arange(self.num_trajectories)
        returns_E = self.discounted(1.0)[self.starts]
        order_E = np.lexsort((self.facts().digests, -returns_E))
        steps_E = np.cumsum(self.lengths[order_E])
        count = np.searchsorted(steps_E, share * self.num_steps) + 1
        return np.sort(order_E[:count])

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each of their steps where in N it lies, and its timestep, int64 each."""
        firsts_E = np.cumsum(self.lengths) - self.lengths
        timesteps = np.arange(self.num_steps) - np.repeat(firsts_E, self.lengths)
        return np.repeat(self.starts, self.lengths) + timesteps, timesteps

    def mean_returns_to_go(self, max_ep_len: int) -> np.ndarray:
        """T float64, unscaled: of each timestep the mean over those that reach it.

        Timesteps from `max_ep_len` on are read as the one before, so T is that, or the
        longest length where it is less.
        """
        rows, timesteps = self.steps()
        timesteps = np.minimum(timesteps, max_ep_len - 1)
        sums_T = np.bincount(timesteps, self.returns_to_go[rows])
        return sums_T / np.bincount(timesteps)

    def relative_to(self, means_T: np.ndarray) -> "Trajectories":
        """The same, their returns-to-go less the mean of the timestep (of the last one
        where it is later): what a segment then holds, and nothing else, changes."""
        rows, timesteps = self.steps()
        returns_to_go = self.returns_to_go.copy()
        returns_to_go[rows] -= means_T[np.minimum(timesteps, len(means_T) - 1)]
        return replace(self, returns_to_go=returns_to_go)

    def choice_counts(self) -> list[np.ndarray]:
        """How often each choice was taken in these trajectories, int64, for each
        dimension of discrete actions; [] of continuous ones."""
        counts = [np.zeros(size, np.int64) for size in self.action_sizes]
        if not counts:
            return counts
        for start, length in zip(self.starts, self.lengths, strict=True):
            actions_TxM = self.actions.slice(start, start + length)
            for count, column_T in zip(counts, actions_TxM.T, strict=True):
                count += np.bincount(column_T, minlength=len(count))
        return counts

    def most_frequent_action(self) -> np.ndarray:
        """M int64, of discrete actions: the choice taken most often, by dimension."""
        return np.array([count.argmax() for count in self.choice_counts()])

    def mean_action(self) -> np.ndarray:
        """A float64, over the steps of these trajectories, in one pass."""
        return mean_and_std(self.actions, self.starts, self.lengths)[0]

    @classmethod
    def from_episodes(
        cls, episodes: Iterable[Mapping], *, split_on_dones=False, discount=1.0
    ) -> "Trajectories":
        """Copy episodes into one store.

        Args:
          episodes: mappings with `observations` (or `states`): TxS, or (T+1)xS, of
            which the last is dropped; `actions`: TxA; `rewards`: T or Tx1; optionally
            `dones` (or `terminals`, `terminations`), and beside them `truncations` (or
            `timeouts`): T or Tx1, done where any is set. Where S or A is 1, T alone
            will do. Unless all episodes have dones, there are none.
          split_on_dones, discount: see `from_arrays`.

        Raises:
          ValueError: a key is missing, a shape disagrees, or a value is not a finite
            float32; the message names the episode by its number.
        """
        episodes = list(read_episodes(episodes))
        if not episodes:
            raise ValueError("found no episodes, expected at least one")
        columns = dict(zip(Episode._fields, zip(*episodes, strict=True), strict=True))
        if any(done is None for done in columns["dones"]):
            del columns["dones"]
        flat = {
            name: np.ascontiguousarray(np.concatenate(column))
            for name, column in columns.items()
        }
        lengths = np.array([len(episode.rewards) for episode in episodes])
        return cls.from_arrays(
            [flat["states"]],
            [flat["actions"]],
            flat["rewards"],
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            dones=flat.get("dones"),
            split_on_dones=split_on_dones,
            discount=discount,
        )

    @classmethod
    def from_arrays(
        cls,
        states: Sequence[np.ndarray],
        actions: Sequence[np.ndarray],
        rewards: np.ndarray,
        *,
        starts: np.ndarray,
        lengths: np.ndarray,
        dones: np.ndarray | None = None,
        state_mean: np.ndarray | None = None,
        state_std: np.ndarray | None = None,
        split_on_dones: bool = False,
        discount: float = 1.0,
        wait: bool = True,
        names: tuple[str, str, str] = ("states", "actions", "rewards"),
    ) -> "Trajectories":
        """Take over arrays that hold the trajectories end to end, and check them.

        Args:
          states: pieces of N_ixS, actions: pieces of N_ixA, not copied; a trajectory
            lies within one piece of each. rewards: N.
          starts, lengths: E, where in N = sum of N_i each trajectory lies.
          dones: N bool. state_mean, state_std: S, computed when not given.
          split_on_dones: end a trajectory after every step whose `done` is set.
          discount: of the returns-to-go; 1 is the notebook's plain sum.
          wait: for the check of the values; else a thread makes it, and `facts` waits.
          names: what to call the three columns in an error.

        Raises:
          ValueError: a trajectory is empty or holds a value that is not finite (the
            trajectories are counted as they came, before any split).
        """
        if not len(lengths):
            raise ValueError("found no trajectories, expected at least one")
        refuse_empty(lengths, names[0])
        if not 0.0 <= discount <= 1.0:
            raise ValueError(f"discount={discount}: expected 0 to 1")
        starts, lengths = starts.astype(np.int64), lengths.astype(np.int64)
        whole = starts, lengths
        if split_on_dones:
            if dones is None:
                raise ValueError(
                    "split_on_dones=True needs a column 'dones' (or 'terminals', "
                    "'terminations', ...), which the dataset does not have"
                )
            starts, lengths = _split(starts, lengths, dones)
        states, actions = Rows(states), Rows(actions)
        for rows, name in zip((states, actions), names[:2], strict=True):
            if not rows.shape[1]:
                raise ValueError(
                    f"column {name!r} has rows of 0 numbers, expected at least one"
                )
        compared = None
        if state_mean is not None:
            given = (np.asarray(state_mean), np.asarray(state_std))
            compared = Comparison(states, starts, lengths, *given)
        # The actions first: what the model looks like may depend on their range.
        thread = ThreadPoolExecutor(1, "check")
        scanned = thread.submit(scan, actions, starts, lengths).result
        check = thread.submit(
            _check,
            *(states, actions, rewards, whole, starts, lengths, names, compared),
            scanned,
        ).result
        thread.shutdown(wait=False)
        if wait or state_mean is None:
            check()
        if state_mean is None:
            state_mean, state_std = mean_and_std(states, starts, lengths)
        discounted = partial(_returns_to_go, rewards, starts, lengths)
        return cls(
            states=states,
            actions=actions,
            rewards=np.asarray(rewards, np.float32),
            dones=dones,
            returns_to_go=discounted(discount),
            discounted=discounted,
            starts=starts,
            lengths=lengths,
            state_mean=np.asarray(state_mean, np.float32),
            state_std=np.asarray(state_std, np.float32),
            action_sizes=_action_sizes(actions),
            action_range=lambda: scanned()[:2],
            facts=check,
        )


def _action_sizes(actions):
    """Of all rows: a few whole numbers each, read long before the states are."""
    if not is_discrete(actions.pieces[0]):
        return ()
    bounds = [[bound(axis=0) for bound in (p.min, p.max)] for p in actions.pieces]
    minima, maxima = zip(*bounds, strict=True)
    return count_choices(np.min(minima, axis=0), np.max(maxima, axis=0))


def _check(
    states, actions, rewards, whole, starts, lengths, names, compared, scanned
) -> Facts:
    """`whole`: starts and lengths as they came, before any split, for errors;
    `scanned`: what gives the scan of the actions."""
    visit = None if compared is None else compared.visit
    scans = [scan(states, starts, lengths, visit), scanned()]
    for rows, found, name in zip((states, actions), scans, names[:2], strict=True):
        # NaN survives a minimum, infinities do too: two reductions prove all.
        if not (is_finite(found.minimum) & is_finite(found.maximum)).all():
            for number, (start, length) in enumerate(zip(*whole, strict=True)):
                check_finite(rows.slice(start, start + length), number, name)
    bad = np.flatnonzero(~is_finite(rewards))
    owner = _owner(bad, *whole)
    if (owner >= 0).any():
        number = owner[owner >= 0][0]
        start, length = (column[number] for column in whole)
        check_finite(rewards[start : start + length], number, names[2])
    rewards_N = np.asarray(rewards, np.float32)
    ranges = [bound for found in scans for bound in (found.minimum, found.maximum)]
    return Facts(
        *ranges,
        digests=combine(scans[0].digests, scans[1].digests, rewards_N, starts, lengths),
        misfit=None if compared is None else compared.misfit(*ranges[:2]),
    )


def _split(starts_E, lengths_E, dones_N):
    """Cut every trajectory after each done that is not its last step."""
    done = np.flatnonzero(dones_N)
    first_E = np.searchsorted(done, starts_E)
    cuts_E = np.searchsorted(done, starts_E + lengths_E - 1) - first_E
    parent = np.repeat(np.arange(len(starts_E)), cuts_E + 1)
    part = np.arange(len(parent)) - np.repeat(
        np.cumsum(cuts_E + 1) - cuts_E - 1, cuts_E + 1
    )
    after_done = np.append(done, 0)[first_E[parent] + part - 1] + 1
    starts = np.where(part == 0, starts_E[parent], after_done)
    is_last = part == cuts_E[parent]
    ends = np.where(is_last, (starts_E + lengths_E)[parent], np.roll(starts, -1))
    return starts, ends - starts


def _returns_to_go(rewards_N, starts_E, lengths_E, discount):
    """R_t = r_t + discount * R_{t+1}, for all trajectories at once, from the back."""
    returns_N = np.array(rewards_N, np.float64)
    by_length = np.argsort(-lengths_E, kind="stable")
    last_E = (starts_E + lengths_E - 1)[by_length]
    # The trajectories with more than `back` steps come first in this order.
    alive = np.searchsorted(-lengths_E[by_length], -np.arange(1, lengths_E.max()))
    for back, count in enumerate(alive, start=1):
        here = last_E[:count] - back
        returns_N[here] += discount * returns_N[here + 1]
    return returns_N


def _owner(rows, starts_E, lengths_E):
    """The trajectory each row belongs to, -1 for none."""
    order = np.argsort(starts_E, kind="stable")
    owner = order[np.searchsorted(starts_E[order], rows, side="right") - 1]
    inside = (rows >= starts_E[owner]) & (rows < (starts_E + lengths_E)[owner])
    return np.where(inside, owner, -1)
