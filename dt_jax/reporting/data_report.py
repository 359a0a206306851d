# SPDX-License-Identifier: Apache-2.0
"""What is in a dataset, and what its owner should know before training on it.

In goes a sampler, out come a dict for JSON and one screen of text.
"""

import math
import textwrap

import numpy as np

from dt_jax.data.segments import SegmentSampler
from dt_jax.data.trajectories import Trajectories

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
BINS = 40  # of a histogram, and of the timesteps
SAMPLED_STEPS = 1_000_000  # returns-to-go beyond this many are sampled evenly
ONE_IN = 50  # trajectories make a return one that can be learned
NEAR = 0.05  # of the span of the returns
WEAK_SIGNAL = 0.1  # returns-to-go below this hardly move the network


def data_report(
    sampler: SegmentSampler,
    *,
    whole: Trajectories,
    action_bounds: tuple | None,
    action_tanh: bool,
    relative_to: str,
    placement: str,
    plan: dict,
) -> dict:
    """What is in the data, and under 'warnings' what its owner should know.

    `sampler` is training's, `whole` has what is held out too, and the returns as they
    are; `action_bounds` are what actions are scaled by, `relative_to` what the
    sampler's returns-to-go are less, `placement` and `plan` where the store will lie
    and `feed.memory_plan`.
    """
    trajectories = sampler.trajectories
    facts = trajectories.facts()
    lengths_E = trajectories.lengths
    raw_E = whole.returns_to_go[trajectories.starts]
    returns_E = np.sort((raw_E / sampler.return_scale).astype(np.float32))
    rows, timesteps = _sampled_steps(trajectories)
    to_go = sampler.returns_to_go[rows]
    read = np.minimum(timesteps, sampler.max_ep_len - 1)
    counts = trajectories.choice_counts()
    report = {
        "trajectories": trajectories.num_trajectories,
        "steps": trajectories.num_steps,
        "state_dim": trajectories.state_dim,
        "act_dim": trajectories.act_dim,
        "bytes": trajectories.nbytes,
        "fingerprint": whole.fingerprint(),
        "held_out_trajectories": whole.num_trajectories - trajectories.num_trajectories,
        "lengths": _quantiles(lengths_E),
        "returns": _quantiles(returns_E),
        "kept": _kept(sampler),
        "return_mean": float(returns_E.mean(dtype=np.float64)),
        "return_std": float(returns_E.std(dtype=np.float64)),
        "auto_target": auto_target(raw_E[sampler.kept]),
        "returns_to_go": _quantiles(to_go),
        "relative_to": relative_to,
        "explained_by_timestep": _explained(whole.returns_to_go[rows], read),
        "histograms": {
            "return": _histogram(returns_E),
            "length": _histogram(lengths_E),
        },
        "returns_to_go_by_timestep": _by_timestep(to_go, timesteps),
        "choices": [count.tolist() for count in counts],
        "action_ranges": {
            "min": facts.action_min.tolist(),
            "max": facts.action_max.tolist(),
        },
        "action_bounds": action_bounds and [bound.tolist() for bound in action_bounds],
        "action_range": [
            float(facts.action_min.min()),
            float(facts.action_max.max()),
        ],
        "constant_features": np.flatnonzero(
            facts.state_min == facts.state_max
        ).tolist(),
        "repeated_trajectories": trajectories.num_trajectories
        - len(np.unique(facts.digests)),
        "trajectories_with_inner_dones": _inner_dones(trajectories),
        "misfit": facts.misfit and facts.misfit._asdict(),
        "clipped_timesteps": int(np.maximum(0, lengths_E - sampler.max_ep_len).sum()),
        "about": dict(whole.about),
        "placement": placement,
        "memory_plan": plan,
    }
    report["warnings"] = _warnings(report, sampler, action_tanh)
    return report


def describe_data(report: dict, *, with_memory: bool = True) -> str:
    """The data report as text, one screen, at most 80 columns wide.

    `with_memory`: with what each placement of the store takes.
    """

    def number(value):
        text = f"{value:.5g}"
        return text if len(text) < 11 else f"{value:.4g}"

    def row(name, quantiles):
        numbers = map(number, quantiles.values())
        return f"  {name:22s}" + "".join(f"{text:>11s}" for text in numbers)

    constant = report["constant_features"]
    inner = report["trajectories_with_inner_dones"]
    held_out = report["held_out_trajectories"]
    lines = [
        f"Data: {report['trajectories']:,} trajectories, {report['steps']:,} steps, "
        f"state_dim {report['state_dim']}, act_dim {report['act_dim']}, "
        f"{_bytes(report['bytes'])}",
        *([f"  held out besides: {held_out:,} trajectories"] if held_out else []),
        *_describe_kept(report["kept"]),
        *_source(report["about"]),
        "  " + " " * 22 + "".join(f"{q:>11s}" for q in report["lengths"]),
        row("length", report["lengths"]),
        row("return / scale", report["returns"]),
        row("return-to-go / scale", report["returns_to_go"]),
        *_describe_explained(report),
        f"  {_actions(report)}; constant features: {len(constant)}"
        + (f" ({_few(constant)})" if constant else ""),
        f"  repeated trajectories: {report['repeated_trajectories']}; "
        f"with a done inside: {'unknown' if inner is None else inner}; "
        f"clipped timesteps: {report['clipped_timesteps']}",
        *(
            f"  memory, placement '{name}': {_bytes(plan['device_bytes'])} on each "
            f"device, {_bytes(plan['host_bytes'])} on the host"
            for name, plan in report["memory_plan"].items()
            if with_memory
        ),
        f"  placement: {report['placement']}",
        *(f"  warning: {text}" for text in report["warnings"]),
    ]
    wrapper = textwrap.TextWrapper(
        width=80,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(map(wrapper.fill, lines))


def auto_target(returns_E: np.ndarray) -> dict:
    """The highest return that enough of the others are near: of `eval.targets=auto`.

    Enough is a fiftieth of the trajectories, two at least: a lucky one alone cannot be
    learned from. Near is within a twentieth of the span that the returns have without
    the highest and the lowest fiftieth (one at least of three or more), so that it does
    not widen with how far away a few are; of normally distributed returns it is a fifth
    of the standard deviation, and the target their 98 % quantile. As twenty such
    stretches make up the span, many trajectories always have such a return. Of few
    that have none it is the median.

    Args:
      returns_E: of the trajectories that are trained on, in raw reward.

    Returns:
      return; quantile, the share of the returns that are not higher; near, how many
      trajectories there are, itself among them, and how many are enough; within which
      distance; trajectories, E.
    """
    returns_E, count = np.sort(returns_E), len(returns_E)
    share = math.ceil(count / ONE_IN)
    cut, enough = min(share, (count - 1) // 2), max(2, share)
    within = NEAR * (returns_E[count - 1 - cut] - returns_E[cut])
    ends_E = np.searchsorted(returns_E, returns_E + within, "right")
    near_E = ends_E - np.searchsorted(returns_E, returns_E - within, "left")
    places = np.flatnonzero(near_E >= enough)
    chosen = returns_E[places[-1] if len(places) else (count - 1) // 2]
    place = np.searchsorted(returns_E, chosen, "right") - 1
    return {
        "return": float(chosen),
        "quantile": (int(place) + 1) / count,
        "near": int(near_E[place]),
        "enough": enough,
        "within": float(within),
        "trajectories": count,
    }


def _explained(to_go, timesteps):
    """The share of the variance of the returns-to-go that the means of their timesteps
    explain; None where they are all alike."""
    counts_T = np.bincount(timesteps)
    means_T = np.bincount(timesteps, to_go) / np.maximum(counts_T, 1)
    left, variance = (to_go - means_T[timesteps]).var(), to_go.var()
    return round(float(1 - left / variance), 4) if variance else None


def _describe_explained(report):
    if (share := report["explained_by_timestep"]) is not None:
        subtracted = ": its mean is subtracted" * (report["relative_to"] == "timestep")
        yield f"  the timestep explains {share:.1%} of their variance{subtracted}"


def _actions(report):
    if choices := report["choices"]:
        shown = "; ".join(
            " ".join(f"{n:,}" for n in count[:6]) for count in choices[:3]
        )
        cut = len(choices) > 3 or any(len(count) > 6 for count in choices[:3])
        sizes = " x ".join(str(len(count)) for count in choices[:6])
        more = " x ..." if len(choices) > 6 else ""
        return (
            f"discrete actions of {sizes}{more} choices, taken {shown}"
            f"{' ...' if cut else ''} times"
        )
    low, high = report["action_range"]
    scaled = ", scaled to -1 and 1" if report["action_bounds"] else ""
    return f"actions from {low:.4g} to {high:.4g}{scaled}"


def _kept(sampler):
    """What `data.keep_best` leaves to train on; None when it leaves all."""
    trajectories, kept = sampler.trajectories, sampler.kept
    if len(kept) == trajectories.num_trajectories:
        return None
    returns = trajectories.discounted(1.0)[trajectories.starts[kept]]
    return {
        "keep_best": sampler.keep_best,
        "trajectories": len(kept),
        "steps": int(trajectories.lengths[kept].sum()),
        "lowest_return": float(returns.min()),
    }


def _describe_kept(kept):
    if kept:
        yield (
            "  data.keep_best={keep_best:g} leaves {trajectories:,} of them, "
            "{steps:,} steps, with returns of {lowest_return:.5g} and more".format(
                **kept
            )
        )


def _histogram(values):
    """Counts between edges; whole numbers of a few get a bin each."""
    low, high = float(values.min()), float(values.max())
    bins = BINS
    if values.dtype.kind == "i":
        low, high = low - 0.5, high + 0.5
        bins = min(BINS, int(high - low))
    if low == high:
        low, high, bins = low - 0.5, high + 0.5, 1
    counts, edges = np.histogram(values, bins, (low, high))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _by_timestep(to_go, timesteps):
    """Quantiles of the returns-to-go in at most BINS ranges of timesteps."""
    last = int(timesteps.max())
    edges = np.unique(np.linspace(0, last + 1, BINS + 1).astype(int))
    order = np.argsort(timesteps, kind="stable")
    bounds = np.searchsorted(timesteps[order], edges)
    parts = np.split(to_go[order], bounds[1:-1])
    filled = [
        (edge, part) for edge, part in zip(edges, parts, strict=False) if len(part)
    ]
    levels = [_quantiles(part) for _, part in filled]
    return {
        "timestep": [int(edge) for edge, _ in filled],
        **{name: [level[name] for level in levels] for name in levels[0]},
    }


def _sampled_steps(trajectories):
    """Of evenly chosen steps where they lie, and their timesteps."""
    ends_E = np.cumsum(trajectories.lengths)
    count = min(SAMPLED_STEPS, trajectories.num_steps)
    steps = np.arange(count) * trajectories.num_steps // count
    owner = np.searchsorted(ends_E, steps, side="right")
    offset = steps - (ends_E - trajectories.lengths)[owner]
    return trajectories.starts[owner] + offset, offset


def _quantiles(values):
    names = ("min", "10 %", "median", "90 %", "max")
    levels = np.quantile(values, QUANTILES)
    return {name: float(level) for name, level in zip(names, levels, strict=True)}


def _inner_dones(trajectories):
    """How many trajectories go on after a done; None when the data has no dones."""
    if trajectories.dones is None:
        return None
    count_N = np.concatenate(([0], np.cumsum(trajectories.dones)))
    start_E = trajectories.starts
    last_E = start_E + trajectories.lengths - 1
    return int((count_N[last_E] > count_N[start_E]).sum())


def _warnings(report, sampler, action_tanh):
    warnings = []
    low, high = report["action_range"]
    is_reached = not action_tanh or report["action_bounds"] or report["choices"]
    if not is_reached and max(-low, high) > 1:
        warnings.append(
            f"actions reach from {low:.4g} to {high:.4g}, but model.action_tanh=True "
            "predicts within (-1, 1); data.action_scaling=auto scales them"
        )
    if report["constant_features"]:
        warnings.append(
            f"{len(report['constant_features'])} features never change: their std "
            "is near 0, and one that moves later is multiplied by up to a million"
        )
    if misfit := report["misfit"]:
        warnings.append(
            f"state_mean and state_std do not fit {misfit['features']} features; "
            "worst is {worst}: stored {stored_mean:.4g} and {stored_std:.4g}, found "
            "{found_mean:.4g} and {found_std:.4g}; "
            "data.statistics=computed has them computed".format(**misfit)
        )
    if report["repeated_trajectories"]:
        warnings.append(
            f"{report['repeated_trajectories']} trajectories repeat another one exactly"
        )
    if report["trajectories_with_inner_dones"]:
        warnings.append(
            f"{report['trajectories_with_inner_dones']} trajectories go on after a "
            "done, and their returns run across a reset; data.split_on_dones=True "
            "cuts there"
        )
    if report["clipped_timesteps"]:
        warnings.append(
            f"{report['clipped_timesteps']} timesteps lie beyond "
            f"data.max_ep_len={sampler.max_ep_len} and are clipped"
        )
    reach = max(abs(level) for level in report["returns_to_go"].values())
    if reach < WEAK_SIGNAL:
        warnings.append(
            f"returns-to-go reach only {reach:.3g} after data.return_scale: hardly a "
            "signal; targets must be of the size of the data's returns"
        )
    return warnings


def _source(about):
    """Lines on where the data comes from, where it says so, and what it knows."""
    if "format" in about:
        left_out = f"; left out: {about['left_out']}" if "left_out" in about else ""
        yield f"  converted from {about['format']}, {about['source']}{left_out}"
    elif "environment" in about:
        yield f"  collected in {about['environment']}"
    if about.get("observations"):
        yield f"  observations, flattened: {about['observations']}"
    if "actions" in about:
        yield f"  actions of the environment: {about['actions']}"
    known = []
    if "environment_kwargs" in about:
        known.append(f"eval.environment={about['environment']}")
    if "score_range" in about:
        low, high = about["score_range"]
        known.append(f"eval.score_range=({low:.6g}, {high:.6g})")
    if known:
        yield f"  unless you set them: {', '.join(known)}"


def _few(numbers):
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (", ..." if len(numbers) > 8 else "")


def _bytes(count):
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
