# SPDX-License-Identifier: Apache-2.0
"""What an episode is: the names and shapes its columns may have, and their faults.

Episodes come in as users have them and leave checked, in one form. The reader and the
writer of datasets follow the same rules; no other file knows the name of a column.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from dt_jax.data.scan import check_finite

STATES = ("observations", "states")  # one of them; we write the first
ACTIONS, REWARDS = "actions", "rewards"
MOST_CHOICES = 1 << 16  # of a dimension of discrete actions
ENDS = ("dones", "terminals", "terminations", "truncations", "timeouts")  # any of them
STRUCT = "train"  # the notebook keeps a trajectory in one struct column of this name
STATISTICS = ("state_mean", "state_std")  # scalar columns of a dataset beside it


class Episode(NamedTuple):
    """An episode of T steps: states TxS and actions TxA in the precision they came in
    (whole numbers are discrete actions), rewards T, dones T bool or None."""

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    dones: np.ndarray | None


class Source(NamedTuple):
    """A dataset of another format: what it says of where it comes from (see
    `Trajectories.about`), how many episodes it has, and each as `read_episodes` takes
    it."""

    about: dict
    num_episodes: int
    episodes: Iterator[Mapping]


class Columns(NamedTuple):
    """What the columns of an episode or a dataset are called; a step is done where one
    of `ends` is set."""

    states: str
    actions: str
    rewards: str
    ends: tuple[str, ...]


def read_episodes(episodes: Iterable[Mapping]) -> Iterator[Episode]:
    """Each episode in turn, checked.

    Args:
      episodes: mappings with `observations` (or `states`): TxS or (T+1)xS, of which the
        last is dropped; `actions`: TxA; `rewards`: T or Tx1; and optionally `dones`
        (or `terminals`, `terminations`) and `truncations` (or `timeouts`): T or Tx1.
        Where S or A is 1, T alone will do. Actions of a whole-number dtype are
        discrete, the choices of each dimension counted from 0.

    Raises:
      ValueError: a key is missing, a shape disagrees, a value is not a finite float32,
        or some actions alone are whole numbers; the message begins with the number of
        the episode.
    """
    widths = discrete = None
    for number, given in enumerate(episodes):
        episode, names = _read(given, number)
        found = episode.states.shape[1], episode.actions.shape[1]
        widths = widths or found
        discrete = is_discrete(episode.actions) if discrete is None else discrete
        if is_discrete(episode.actions) != discrete:
            raise ValueError(
                f"trajectory {number}: column {names[1]!r} holds "
                f"{episode.actions.dtype}, but that of trajectory 0 holds "
                f"{'whole numbers' if discrete else 'floats'}; actions are either "
                "discrete, all whole numbers, or continuous, all floats"
            )
        for name, width, expected in zip(names[:2], found, widths, strict=True):
            if width != expected:
                raise ValueError(
                    f"trajectory {number}: column {name!r} has rows of {width} "
                    f"numbers, but those of trajectory 0 have {expected}; all rows "
                    "must be equally wide"
                )
        yield episode


def describe_actions(space) -> dict:
    """What `Trajectories.about` says of a Gymnasium space: `actions`, its text, and of
    a bounded Box `action_bounds`, low A and high A."""
    text = " ".join(str(space).split())
    if not (hasattr(space, "is_bounded") and space.is_bounded()):
        return {"actions": text}
    bounds = [space.low.reshape(-1).tolist(), space.high.reshape(-1).tolist()]
    return {"actions": text, "action_bounds": bounds}


def is_discrete(actions: np.ndarray) -> bool:
    """Whether actions are choices: whole numbers (or booleans) by their dtype."""
    return actions.dtype.kind != "f"


def count_choices(minimum_A: np.ndarray, maximum_A: np.ndarray) -> tuple[int, ...]:
    """The choices of each dimension of discrete actions that lie in these bounds.

    Raises:
      ValueError: they do not count from 0, or far too many.
    """
    low, high = int(minimum_A.min()), int(maximum_A.max())
    if low < 0 or high >= MOST_CHOICES:
        raise ValueError(
            f"column {ACTIONS!r} holds whole numbers from {low} to {high}; expected "
            f"choices counted from 0 to at most {MOST_CHOICES - 1}, or, for continuous "
            "actions, floats"
        )
    return tuple(int(high) + 1 for high in maximum_A)


def name_columns(names: Collection[str], found: str, where: str = "") -> Columns:
    """Which columns hold what; `found` and `where` are the ends of an error message.

    Raises:
      ValueError: one that is needed is not there, or the states are there twice.
    """
    states = [name for name in STATES if name in names]
    if len(states) > 1:
        raise ValueError(f"{found}; expected either {' or '.join(STATES)}, not both")
    if not states or ACTIONS not in names or REWARDS not in names:
        raise ValueError(
            f"{found}; expected {STATES[0]} (or {STATES[1]}), {ACTIONS}, {REWARDS} "
            f"(and {ENDS[0]}){where}"
        )
    ends = tuple(name for name in ENDS if name in names)
    return Columns(states[0], ACTIONS, REWARDS, ends)


def count_steps(lengths: Mapping[str, np.ndarray], first: int = 0) -> np.ndarray:
    """E: the steps of trajectories whose columns are so long, E each.

    The states, which stand first, may have one row more than all other columns: what
    was observed after the last action.

    Args:
      first: the number of the first of these trajectories.

    Raises:
      ValueError: the columns of a trajectory are not equally long.
    """
    states, *others = lengths
    more_E = np.all([lengths[name] == lengths[states] - 1 for name in others], axis=0)
    steps_E = lengths[states] - more_E
    for name in others:
        bad = np.flatnonzero(lengths[name] != steps_E)
        if len(bad):
            raise ValueError(
                f"trajectory {first + bad[0]}: column {name!r} has "
                f"{lengths[name][bad[0]]} steps, but column {states!r} has "
                f"{lengths[states][bad[0]]}; the columns of a trajectory must be "
                "equally long"
            )
    return steps_E


def refuse_empty(steps_E: np.ndarray, name: str, first: int = 0) -> None:
    """Raise ValueError where a trajectory has no steps; `name`: of its states."""
    if steps_E.min() < 1:
        raise ValueError(
            f"trajectory {first + int(np.argmin(steps_E))}: column {name!r} has no "
            "steps; every trajectory needs at least one"
        )


def _read(given, number):
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise ValueError(f"trajectory {number}: found {kind}, expected a mapping")
    found = ", ".join(sorted(map(str, given)))
    names = name_columns(given, f"trajectory {number}: found {found}")
    columns = {
        name: _column(given[name], name, number, name in names[:2])
        for name in (*names[:3], *names.ends)
    }
    lengths = {name: np.array([len(column)]) for name, column in columns.items()}
    steps_1 = count_steps(lengths, number)
    refuse_empty(steps_1, names.states, number)
    columns[names.states] = columns[names.states][: steps_1[0]]
    for name, column in columns.items():
        check_finite(column, number, name)
    dones = [columns[name].astype(bool) for name in names.ends]
    return Episode(
        *(columns[name] for name in names[:3]),
        dones=np.any(dones, axis=0) if dones else None,
    ), names


def _column(given, name, number, is_matrix) -> np.ndarray:
    """TxW, or T where it is no matrix."""
    where = f"trajectory {number}: column {name!r}"
    try:
        values = np.asarray(given)
    except ValueError:
        raise ValueError(f"{where} has rows of unequal widths") from None
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{where} holds {values.dtype}, expected numbers")
    shape = values.shape
    if len(shape) == 1:
        values = values[:, None]
    if values.ndim != 2 or not (is_matrix or values.shape[1] == 1):
        expected = "(steps, width)" if is_matrix else "(steps,)"
        raise ValueError(f"{where} has shape {shape}, expected {expected}")
    if not values.shape[1]:
        raise ValueError(f"{where} has rows of 0 numbers, expected at least one")
    return values if is_matrix else values[:, 0]
