# SPDX-License-Identifier: Apache-2.0
"""All episodes of a dataset, end to end in flat arrays, validated once.

Readers and callers bring arrays in (possibly memory maps, in several pieces); what
leaves is read-only: where each trajectory starts, how long it is, its returns-to-go,
and the statistics of the states. Nothing here copies the states or knows a file format.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import xxhash

from dt_jax.data.rows import Rows
from dt_jax.data.scan import combine, first_fault, is_finite, mean_and_std, scan


class Facts(NamedTuple):
    """What a pass over all steps has found, their values being finite float32.

    state_min, state_max: S; action_min, action_max: A float64, over all steps. digests:
    E uint64, equal for trajectories of equal content.
    """

    state_min: np.ndarray
    state_max: np.ndarray
    action_min: np.ndarray
    action_max: np.ndarray
    digests: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories:
    """A validated dataset of E trajectories with N stored steps.

    `len()` is E, and `[i]` is trajectory i as a dict: states TxS, actions TxA, rewards
    T and, where there are any, dones T, none of them a copy.

    Attributes:
      states: NxS and actions: NxA `Rows`, in the precision they are stored in.
      rewards: N float32. dones: N bool, or None when the dataset has none.
      returns_to_go: N float64, discounted as asked, unscaled; float64 so that dividing
        by the return scale rounds once, as Hugging Face's collator does.
      starts, lengths: E int64, where in N each trajectory lies.
      state_mean, state_std: S float32, the dataset's own or computed.
      facts: () -> Facts; waits for the check of the values, and raises a ValueError
        where one is at fault.
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
    facts: Callable[[], Facts]

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
        return self.actions.shape[1]

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

    def mean_action(self) -> np.ndarray:
        """A float64, over the steps of these trajectories, in one pass."""
        return mean_and_std(self.actions, self.starts, self.lengths)[0]

    @classmethod
    def from_episodes(
        cls, episodes: Iterable[Mapping], *, split_on_dones=False, discount=1.0
    ) -> "Trajectories":
        """Copy a list of episodes into one store.

        Args:
          episodes: mappings with `states` (or `observations`): TxS, `actions`: TxA,
            `rewards`: T, and optionally `dones`: T.
          split_on_dones, discount: see `from_arrays`.

        Raises:
          ValueError: a key is missing, a shape disagrees, or a value is not finite.
        """
        episodes = [
            {
                "states" if key == "observations" else key: value
                for key, value in e.items()
            }
            for e in episodes
        ]
        if not episodes:
            raise ValueError("found no episodes, expected at least one")
        names = ("states", "actions", "rewards")
        if all("dones" in episode for episode in episodes):
            names = (*names, "dones")
        columns = {
            name: [_column(e, name, number) for number, e in enumerate(episodes)]
            for name in names
        }
        lengths = {
            name: np.array([len(value) for value in column])
            for name, column in columns.items()
        }
        check_lengths(lengths)
        for name in ("states", "actions"):
            check_widths(name, np.array([v.shape[1] for v in columns[name]]))
        flat = {
            name: np.ascontiguousarray(np.concatenate(column))
            for name, column in columns.items()
        }
        return cls.from_arrays(
            [flat["states"]],
            [flat["actions"]],
            flat["rewards"],
            starts=np.cumsum(lengths["states"]) - lengths["states"],
            lengths=lengths["states"],
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
        if lengths.min() < 1:
            raise ValueError(
                f"trajectory {int(np.argmin(lengths))}: column {names[0]!r} has no "
                "steps; every trajectory needs at least one"
            )
        if not 0.0 <= discount <= 1.0:
            raise ValueError(f"discount={discount}: expected 0 to 1")
        starts, lengths = starts.astype(np.int64), lengths.astype(np.int64)
        whole = starts, lengths
        if split_on_dones:
            if dones is None:
                raise ValueError(
                    "split_on_dones=True needs a column 'dones', "
                    "which the dataset does not have"
                )
            starts, lengths = _split(starts, lengths, dones)
        states, actions = Rows(states), Rows(actions)
        for rows, name in zip((states, actions), names[:2], strict=True):
            if not rows.shape[1]:
                raise ValueError(
                    f"column {name!r} has rows of 0 numbers, expected at least one"
                )
        check = partial(_check, states, actions, rewards, whole, starts, lengths, names)
        if wait or state_mean is None:
            check = partial(lambda facts: facts, check())
        else:
            thread = ThreadPoolExecutor(1, "check")
            check = thread.submit(check).result
            thread.shutdown(wait=False)
        if state_mean is None:
            state_mean, state_std = mean_and_std(states, starts, lengths)
        return cls(
            states=states,
            actions=actions,
            rewards=np.asarray(rewards, np.float32),
            dones=dones,
            returns_to_go=_returns_to_go(rewards, starts, lengths, discount),
            starts=starts,
            lengths=lengths,
            state_mean=np.asarray(state_mean, np.float32),
            state_std=np.asarray(state_std, np.float32),
            facts=check,
        )


def _check(states, actions, rewards, whole, starts, lengths, names) -> Facts:
    """`whole`: starts and lengths as they came, before any split, for errors."""
    scans = [scan(rows, starts, lengths) for rows in (states, actions)]
    for rows, found, name in zip((states, actions), scans, names[:2], strict=True):
        # NaN survives a minimum, infinities do too: two reductions prove all.
        if not (is_finite(found.minimum) & is_finite(found.maximum)).all():
            raise ValueError(first_fault(rows, *whole, name))
    bad = np.flatnonzero(~is_finite(rewards))
    bad = bad[_owner(bad, *whole) >= 0]
    if len(bad):
        trajectory = _owner(bad[:1], *whole)[0]
        raise ValueError(
            f"trajectory {trajectory}: column {names[2]!r} holds {rewards[bad[0]]} "
            f"at step {bad[0] - whole[0][trajectory]}; expected a finite float32"
        )
    rewards_N = np.asarray(rewards, np.float32)
    digests = [found.digests for found in scans]
    return Facts(
        scans[0].minimum,
        scans[0].maximum,
        scans[1].minimum,
        scans[1].maximum,
        combine(*digests, rewards_N, starts, lengths),
    )


def check_lengths(lengths: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where the columns of a trajectory are not equally long."""
    first, *others = lengths
    for name in others:
        bad = np.flatnonzero(lengths[name] != lengths[first])
        if len(bad):
            raise ValueError(
                f"trajectory {bad[0]}: column {name!r} has {lengths[name][bad[0]]} "
                f"steps, but column {first!r} has {lengths[first][bad[0]]}; "
                "the columns of a trajectory must be equally long"
            )


def check_widths(name: str, widths_E: np.ndarray) -> None:
    """Raise ValueError where a trajectory's rows are not as wide as the first's."""
    bad = np.flatnonzero(widths_E != widths_E[0])
    if len(bad):
        raise ValueError(
            f"trajectory {bad[0]}: column {name!r} has rows of {widths_E[bad[0]]} "
            f"numbers, but those of trajectory 0 have {widths_E[0]}; all rows must be "
            "equally wide"
        )


def _column(episode: Mapping, name: str, number: int) -> np.ndarray:
    if name not in episode:
        raise ValueError(
            f"trajectory {number}: found {', '.join(sorted(episode))}, "
            f"expected also {name!r}"
        )
    try:
        value = np.asarray(episode[name])
    except ValueError:
        raise ValueError(
            f"trajectory {number}: column {name!r} has rows of unequal widths"
        ) from None
    if value.dtype.kind not in "fiub":
        raise ValueError(
            f"trajectory {number}: column {name!r} holds {value.dtype}, "
            "expected numbers"
        )
    if name in ("rewards", "dones"):
        value = value.reshape(-1)
    elif value.ndim != 2:
        raise ValueError(
            f"trajectory {number}: column {name!r} has shape {value.shape}, "
            "expected (steps, width)"
        )
    return value


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
