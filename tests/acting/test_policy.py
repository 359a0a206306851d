# SPDX-License-Identifier: Apache-2.0
"""Acting sees what training saw, and does what scripts around HF's model do."""

from contextlib import closing
from functools import partial

import jax
import numpy as np
import optax
import pytest

from dt_jax.acting import policy as policy_file
from dt_jax.acting.policy import Policies, Policy
from dt_jax.data.segments import SegmentSampler, normalize
from dt_jax.data.trajectories import Trajectories
from dt_jax.model.decision_transformer import (
    DecisionTransformer,
    init_params,
    model_fields,
)
from dt_jax.model.hf_weights import export_hf
from dt_jax.training.checkpoint import Checkpoints
from dt_jax.training.train_step import init_state, predict

pytestmark = pytest.mark.usefixtures("compile_fast")

E, K, S, A = 3, 4, 5, 2
STEPS = 2 * K + 3
TARGETS = [-20.0, 3.0, 55.5]
# Weights so large that whatever the model reads changes its actions.
MODEL = DecisionTransformer(
    state_dim=S,
    act_dim=A,
    hidden_size=16,
    n_layer=1,
    n_head=2,
    max_ep_len=30,
    initializer_range=0.3,
)
PARAMS = jax.jit(partial(init_params, MODEL))(jax.random.key(0))
NORMALIZATION = {
    "state_mean": [1.0, -2.0, 0.5, 0.0, 3.0],
    "state_std": [0.5, 2.0, 1.0, 3.0, 1e-2],
    "return_scale": 10.0,
    "context_length": K,
    "max_ep_len": 30,
}
DRAWN = np.random.default_rng(0)
STATES_TxExS = DRAWN.normal(
    NORMALIZATION["state_mean"], NORMALIZATION["state_std"], (STEPS, E, S)
).astype(np.float32)
REWARDS_TxE = DRAWN.integers(-9, 9, (STEPS, E)).astype(np.float32)


def make_policy(model=MODEL, **changes):
    return Policy(model, PARAMS, NORMALIZATION | changes)


def episode(policy, states_TxExS=STATES_TxExS, targets=TARGETS):
    """The actions of all steps, TxExA."""
    policy.reset(targets)
    rewards_TxE = REWARDS_TxE[:, : len(targets)]
    return np.stack(
        [
            policy.act(states_ExS, rewards_TxE[step - 1] if step else None)
            for step, states_ExS in enumerate(states_TxExS)
        ]
    )


@pytest.fixture(scope="module")
def policy():
    return make_policy()


@pytest.fixture(scope="module")
def actions(policy):
    return episode(policy)


@pytest.mark.parity
def test_actions_are_those_of_a_script_around_hf(actions, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from benchmarks.acting import Script

    export_hf(tmp_path, MODEL, PARAMS, NORMALIZATION)
    expected = episode(Script(tmp_path))
    # Both sides round in float32.
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)
    assert np.ptp(actions, axis=(0, 1)).min() > 0.5


def test_a_context_on_paper():
    sizes = {"state_dim": 1, "act_dim": 1, "hidden_size": 1, "n_layer": 1}
    model = DecisionTransformer(max_ep_len=2, action_tanh=False, **sizes)
    params = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    params["predict_action.0"]["bias"] += 0.5
    policy = Policy(
        model,
        params,
        {
            "state_mean": [0.0],
            "state_std": [1.0],
            "return_scale": 10.0,
            "context_length": 3,
            "max_ep_len": 2,
        },
    )
    policy.reset([10.0, -1.0])
    assert policy.act([[7], [1]], None).tolist() == [[0.5], [0.5]]
    policy.act([[8], [2]], [3, 0])
    context = policy._context
    np.testing.assert_array_equal(context.states[..., 0], [[0, 7, 8], [0, 1, 2]])
    np.testing.assert_array_equal(context.actions[..., 0], [[-10, 0.5, 0.5]] * 2)
    np.testing.assert_array_equal(
        context.returns_to_go[..., 0], np.float32([[0, 1, 0.7], [0, -0.1, -0.1]])
    )
    np.testing.assert_array_equal(context.timesteps, [[0, 0, 1]] * 2)
    np.testing.assert_array_equal(context.attention_mask, [[0, 1, 1]] * 2)
    policy.act([[9], [3]], [-1, 0])
    policy.act([[10], [4]], [0, 2])
    context = policy._context
    np.testing.assert_array_equal(context.states[..., 0], [[8, 9, 10], [2, 3, 4]])
    np.testing.assert_array_equal(
        context.returns_to_go[..., 0],
        np.float32([[0.7, 0.8, 0.8], [-0.1, -0.1, -0.3]]),
    )
    np.testing.assert_array_equal(context.timesteps, [[1, 1, 1]] * 2)
    np.testing.assert_array_equal(context.attention_mask, [[1, 1, 1]] * 2)


def test_what_cannot_be_had_is_not_asked_for():
    """On paper: a head of zeros and a bias says 0.5 wherever it is asked."""
    model = MODEL.clone(predict_return=True)
    params = PARAMS | {
        "predict_return": {
            "kernel": np.zeros((16, 1), "float32"),
            "bias": np.float32([0.5]),
        }
    }
    policy = Policy(model, params, NORMALIZATION)
    actions = episode(policy, STATES_TxExS[:2], [7.0, 5.0, -10.0])
    then_E = np.minimum(([7.0, 5.0, -10.0] - REWARDS_TxE[0]) / 10, 0.5)
    asked_ExK = np.float32([[0, 0, 0.5, 0], [0, 0, 0.5, 0], [0, 0, -1, 0]])
    asked_ExK[:, -1] = then_E
    found_ExKx1 = policy._context.returns_to_go
    np.testing.assert_array_equal(found_ExKx1[..., 0], asked_ExK)
    # What is asked for beyond it does not matter, and less does.
    more = episode(policy, STATES_TxExS[:1], [1000.0, 5.0, -20.0])
    np.testing.assert_array_equal(more[0, :2], actions[0, :2])
    assert (more[0, 2] != actions[0, 2]).all()
    # Several policies as one do the same.
    policies = Policies([policy, Policy(model, PARAMS, NORMALIZATION)])
    policies.reset(np.array([7.0, 5.0, -10.0] * 2))
    together = policies.act(np.tile(STATES_TxExS[0], (2, 1)), np.zeros(2 * E))
    # Float32, vectorised over the policies in another order.
    np.testing.assert_allclose(together[:E], actions[0], rtol=0, atol=1e-6)
    assert (together[E:-1] != actions[0, :-1]).all()


def test_the_model_sees_what_the_sampler_gathers():
    max_ep_len = STEPS - 2
    policy = make_policy(max_ep_len=max_ep_len)
    apply = jax.jit(MODEL.apply)
    policy.reset(REWARDS_TxE.sum(0))  # whole numbers: sums of any order are exact
    actions_TxExA = np.zeros((STEPS, E, A), np.float32)
    for step in range(STEPS):
        actions_TxExA[step] = policy.act(STATES_TxExS[step], REWARDS_TxE[step - 1])
        batch = last_segment(actions_TxExA[: step + 1], max_ep_len)
        for name, seen in policy._context._asdict().items():
            if name != "rewards":
                expected = getattr(batch, name)
                assert (seen.dtype, seen.shape) == (expected.dtype, expected.shape)
                np.testing.assert_array_equal(seen, expected, err_msg=f"{name}, {step}")
        batch.actions[:, -1] = 1e6  # the action that is asked for
        prediction = apply(
            {"params": PARAMS},
            states=normalize(
                batch.states,
                np.float32(NORMALIZATION["state_mean"]),
                np.float32(NORMALIZATION["state_std"]),
            ),
            actions=batch.actions,
            returns_to_go=batch.returns_to_go,
            timesteps=batch.timesteps,
            attention_mask=batch.attention_mask,
        )
        # Two compiled programs round each in their way.
        np.testing.assert_allclose(
            actions_TxExA[step], prediction.action_preds[:, -1], rtol=0, atol=1e-6
        )


def test_what_is_asked_for_is_relative_as_in_training():
    lengths_E = [STEPS, 5, 2]
    store = Trajectories.from_episodes(
        [
            {
                "states": STATES_TxExS[:length, number],
                "actions": np.zeros((length, A)),
                "rewards": REWARDS_TxE[:length, number],
            }
            for number, length in enumerate(lengths_E)
        ],
        discount=0.5,
    )
    means_T = store.mean_returns_to_go(STEPS - 2)
    sampler = SegmentSampler(
        store.relative_to(means_T),
        **{"batch_size": E, "context_length": K, "max_ep_len": STEPS - 2, "seed": 0},
        **{"return_scale": 3.0, "weighting": "length"},
    )
    policy = make_policy(
        discount=0.5,
        return_scale=3.0,
        max_ep_len=STEPS - 2,
        mean_returns_to_go=means_T.tolist(),
    )
    policy.reset(store.returns_to_go[store.starts])  # in raw reward
    seen_TxE = np.zeros((STEPS, E), np.float32)
    for step in range(STEPS):
        policy.act(STATES_TxExS[step], REWARDS_TxE[step - 1])
        seen_TxE[step] = policy._context.returns_to_go[:, -1, 0]
    for number, length in enumerate(lengths_E):
        steps = slice(store.starts[number], store.starts[number] + length)
        # Whole rewards, halved: exact in float64, and rounded once.
        expected = sampler.returns_to_go[steps]
        np.testing.assert_array_equal(seen_TxE[:length, number], expected)
        assert (expected != np.float32(store.returns_to_go[steps] / 3)).any()


def last_segment(actions_TxExA, max_ep_len):
    """The sampler's batch of the last steps of episodes that end after these actions.

    What the episodes went on to earn counts as the last reward.
    """
    steps = len(actions_TxExA)
    rewards_TxE = REWARDS_TxE[:steps].copy()
    rewards_TxE[-1] = REWARDS_TxE[steps - 1 :].sum(0)
    sampler = SegmentSampler(
        Trajectories.from_episodes(
            {
                "states": STATES_TxExS[:steps, number],
                "actions": actions_TxExA[:, number],
                "rewards": rewards_TxE[:, number],
            }
            for number in range(E)
        ),
        batch_size=E,
        context_length=K,
        max_ep_len=max_ep_len,
        return_scale=NORMALIZATION["return_scale"],
        weighting="length",
        seed=0,
    )
    return sampler.gather(np.arange(E), np.full(E, max(0, steps - K)))


def test_what_stands_for_the_action_asked_for_does_not_matter(actions, monkeypatch):
    monkeypatch.setattr(policy_file, "ACTION_PADDING", 1e6)
    np.testing.assert_array_equal(episode(make_policy()), actions)


def test_an_environment_that_has_ended_does_not_touch_the_others(policy, actions):
    states_TxExS = STATES_TxExS.copy()
    states_TxExS[K:, 1] = 1e4
    found = episode(policy, states_TxExS)
    np.testing.assert_array_equal(found[:, [0, 2]], actions[:, [0, 2]])
    assert (found[K:, 1] != actions[K:, 1]).any()


def test_reset_forgets_everything(policy, actions):
    np.testing.assert_array_equal(episode(policy), actions)
    alone = episode(policy, STATES_TxExS[:, :1], TARGETS[:1])
    # Another number of environments is another program.
    np.testing.assert_allclose(alone, actions[:, :1], rtol=0, atol=1e-6)
    targets_E = np.array(TARGETS)
    policy.reset(targets_E)
    targets_E += 7  # the caller's own again
    first = policy.act(STATES_TxExS[0], REWARDS_TxE[7])  # of the episode before
    np.testing.assert_array_equal(first, actions[0])


def test_one_program_for_all_steps(monkeypatch):
    traced = []
    monkeypatch.setattr(
        policy_file, "predict", lambda *args: traced.append(args) or predict(*args)
    )
    policy = make_policy(MODEL.clone(resid_pdrop=0.2))  # compiled by no other test
    for _ in range(2):
        episode(policy)
    episode(policy, STATES_TxExS.astype(np.float64))
    assert len(traced) == 1


def test_a_timestep_beyond_training_is_the_last_and_said_once(monkeypatch):
    said = []
    monkeypatch.setattr(policy_file.logging, "warning", said.append)
    clipped = make_policy(max_ep_len=6)
    episode(clipped, STATES_TxExS[:6])
    assert said == []
    episode(clipped)
    episode(clipped)
    assert said == [
        "timestep 6 lies beyond max_ep_len=6: from here on the policy reads 5, "
        "as training did"
    ]


def test_without_a_discounted_future_the_target_is_of_each_step(policy):
    # As if no reward had come, whatever has.
    found = episode(make_policy(discount=0.0))
    policy.reset(TARGETS)
    expected = [policy.act(states_ExS, np.zeros(E)) for states_ExS in STATES_TxExS]
    np.testing.assert_array_equal(found, expected)


def test_a_return_that_never_comes_leaves_actions_finite():
    policy = make_policy(discount=0.5)
    policy.reset([1.0, -1.0])
    for _ in range(1200):  # 2^1200 is beyond float64
        actions = policy.act(np.zeros((2, MODEL.state_dim)), np.zeros(2))
    assert np.isfinite(actions).all()


def test_bfloat16_is_close_and_float32_outside(actions):
    found = episode(make_policy(MODEL.clone(dtype="bfloat16")))
    assert found.dtype == actions.dtype == np.float32
    # bfloat16 keeps 8 bits: 0.4 % a rounding; early errors come back as inputs.
    np.testing.assert_allclose(found, actions, rtol=0, atol=0.05)
    assert (found != actions).any()


def test_under_jax_enable_x64_actions_are_the_same(actions):
    with jax.enable_x64(True):
        found = episode(make_policy())
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, actions)


def test_a_workdir_and_its_export_act_alike(actions, tmp_path):
    state = init_state(PARAMS, optimizer=optax.identity())
    record = {"model": model_fields(MODEL), "normalization": NORMALIZATION}
    with closing(Checkpoints(tmp_path / "checkpoints", 1)) as checkpoints:
        checkpoints.save(1, {"state": state}, record)
    export_hf(tmp_path / "hf", MODEL, PARAMS, NORMALIZATION)
    for path in (tmp_path, tmp_path / "hf"):
        np.testing.assert_array_equal(episode(Policy.load(path)), actions)


@pytest.mark.parametrize(
    ("normalization", "missing"),
    [
        (None, "state_mean, state_std, return_scale, context_length, max_ep_len"),
        (
            {"state_mean": [], "state_std": [], "max_ep_len": 1},
            "return_scale, context_length",
        ),
    ],
)
def test_a_folder_without_statistics_is_refused(tmp_path, normalization, missing):
    export_hf(tmp_path, MODEL, PARAMS, normalization)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared as a whole below)
        Policy.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: normalization.json lacks {missing}; "
        "main.py --mode=export writes it beside the weights"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"max_ep_len": 31},
            "normalization has max_ep_len=31, but the model's table of timesteps has "
            "30 rows",
        ),
        (
            {"state_mean": [1.0] * 4},
            "normalization.state_mean=[1.0, 1.0, 1.0, 1.0]: shape (4,), expected "
            "finite numbers of shape (5,)",
        ),
        (
            {"state_std": [1.0, 0.0, 1.0, 1.0, 1.0]},
            "normalization.state_std[1]=0.0: expected above 0",
        ),
        (
            {"mean_returns_to_go": [1.0, float("nan")]},
            "normalization.mean_returns_to_go=[1.0, nan]: nan at [1], expected finite "
            "numbers of shape (2,)",
        ),
    ],
)
def test_statistics_of_another_model_are_refused(changes, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared as a whole below)
        make_policy(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["a", 2.0], "['a', 2.0]: not an array of numbers"),
        ([[1.0], [1.0, 2.0]], "[[1.0], [1.0, 2.0]]: not an array of numbers"),
        ([1.0, np.nan], "[1.0, nan]: nan at [1]"),
        ([], "[]: shape (0,)"),
        ([[3.6]], "[[3.6]]: shape (1, 1)"),
    ],
)
def test_targets_that_are_none_are_named(policy, targets, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared as a whole below)
        policy.reset(targets)
    assert str(caught.value) == (
        f"target_returns={message}, expected finite numbers of shape () or (E,)"
    )


def test_inputs_that_do_not_fit_are_named_and_change_nothing(policy, actions):
    states_ExS, rewards_E = STATES_TxExS[1], REWARDS_TxE[0]
    spoiled_ExS = np.where(np.eye(E, S), states_ExS, np.inf)
    policy.reset(TARGETS)
    policy.act(STATES_TxExS[0])
    for states, rewards, message in (
        (states_ExS[:, 1:], rewards_E, r"^states=.*: shape \(3, 4\), .* \(3, 5\)$"),
        (states_ExS[0], rewards_E, r"^states=.*: shape \(5,\), .* \(3, 5\)$"),
        (spoiled_ExS, rewards_E, r"^states=.*: inf at \[0, 1\], .* \(3, 5\)$"),
        (states_ExS, None, r"^rewards=None: shape \(\), .* \(3,\)$"),
        (states_ExS, rewards_E[:2], r"^rewards=.*: shape \(2,\), .* \(3,\)$"),
        (states_ExS, [0, 0, np.nan], r"^rewards=.*: nan at \[2\], .* \(3,\)$"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.act(states, rewards)
    np.testing.assert_array_equal(policy.act(states_ExS, rewards_E), actions[1])


def test_acting_begins_with_a_reset():
    with pytest.raises(ValueError, match=r"^act\(\) before reset\(target_returns\)$"):
        make_policy().act(STATES_TxExS[0])


def test_one_environment_needs_no_axis(policy):
    expected = episode(policy, STATES_TxExS[:, :1], TARGETS[:1])[:, 0]
    policy.reset(TARGETS[0])
    first = policy.act(STATES_TxExS[0, 0])
    assert first.shape == (policy.act_dim,)
    np.testing.assert_array_equal(first, expected[0])
    for step in range(1, STEPS):
        found = policy.act(STATES_TxExS[step, 0], REWARDS_TxE[step - 1, 0])
        np.testing.assert_array_equal(found, expected[step])
    with pytest.raises(ValueError, match=r"^states=.*: shape \(1, 5\), .* \(5,\)$"):
        policy.act(STATES_TxExS[0, :1], 0.0)


def test_some_begin_anew_while_others_go_on(policy, actions):
    other = [1.0, 2.0, 7.0]  # of the episodes that begin later
    anew = episode(policy, STATES_TxExS[:4], other)
    begun_E, mask_E = np.array([2, STEPS, 5]), np.zeros(E, bool)
    policy.reset(TARGETS)
    for step in range(7):
        mask_E = begun_E == step
        if mask_E.any():
            # What stands for those that go on is not read.
            policy.reset(np.where(mask_E, other, np.nan), mask=mask_E)
        time_E = np.where(step < begun_E, step, step - begun_E)
        rewards_E = np.where(time_E, REWARDS_TxE[time_E - 1, np.arange(E)], 1e6)
        found = policy.act(STATES_TxExS[time_E, np.arange(E)], rewards_E)
        for e in range(E):
            expected = actions if step < begun_E[e] else anew
            if time_E[e] < len(expected):
                np.testing.assert_array_equal(found[e], expected[time_E[e], e])


def test_a_mask_that_does_not_fit_is_refused_and_changes_nothing(policy, actions):
    with pytest.raises(ValueError, match=r"before reset\(target_returns\)$"):
        make_policy().reset(1.0, mask=[True])
    policy.reset(TARGETS)
    policy.act(STATES_TxExS[0])
    for targets, mask, message in (
        (1.0, [True, False], r"^mask: found bool of shape \(2,\), .* \(3,\)$"),
        (1.0, [1, 0, 0], r"^mask: found int64 of shape \(3,\), expected bools"),
        ([np.nan, 0, 0], [True, False, False], r"^target_returns=.*nan at \[0\]"),
        ([0.0, 0.0], [True, False, False], r"^target_returns=.*: shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.reset(targets, mask=mask)
    found = policy.act(STATES_TxExS[1], REWARDS_TxE[0])
    np.testing.assert_array_equal(found, actions[1])


def test_a_policy_says_its_sizes(policy):
    assert repr(policy) == "Policy(state_dim=5, act_dim=2)"


CHOICES = MODEL.clone(act_dim=5, action_sizes=(2, 3))
CHOICE_PARAMS = jax.jit(partial(init_params, CHOICES))(jax.random.key(0))


def make_chooser(model=CHOICES, **options):
    return Policy(model, CHOICE_PARAMS, NORMALIZATION, **options)


def test_discrete_actions_are_the_most_likely_choices():
    policy = make_chooser()
    assert (policy.act_dim, policy.action_sizes) == (2, (2, 3))
    found_TxEx2 = episode(policy)
    assert found_TxEx2.dtype == np.int32
    # What the model says of all that the policy has seen, its own choices as one-hot.
    first, last = STEPS - K, STEPS - 1
    one_hot = np.eye(2)[found_TxEx2[..., 0]], np.eye(3)[found_TxEx2[..., 1]]
    spent_TxE = np.cumsum(REWARDS_TxE, axis=0)[first - 1 : last]
    to_go_TxE = (np.array(TARGETS)[None] - spent_TxE) / NORMALIZATION["return_scale"]
    mean, std = (np.array(NORMALIZATION[f"state_{key}"]) for key in ("mean", "std"))
    states_TxExS = normalize(STATES_TxExS[first:], mean, std)
    logits = CHOICES.apply(
        {"params": CHOICE_PARAMS},
        states=np.float32(states_TxExS).swapaxes(0, 1),
        actions=np.float32(np.concatenate(one_hot, axis=-1)[first:]).swapaxes(0, 1),
        returns_to_go=np.float32(to_go_TxE).T[..., None],
        timesteps=np.tile(np.arange(first, STEPS), (E, 1)),
        attention_mask=np.ones((E, K), np.float32),
    ).action_preds[:, -1]
    expected = np.stack([logits[:, :2].argmax(-1), logits[:, 2:].argmax(-1)], axis=-1)
    np.testing.assert_array_equal(found_TxEx2[-1], expected)


def test_draws_are_those_of_their_seed_and_begin_anew_at_a_reset():
    policy = make_chooser(sample=True, temperature=3.0, seed=1)
    first = episode(policy)
    np.testing.assert_array_equal(episode(policy), first)
    assert (episode(make_chooser(sample=True, temperature=3.0, seed=2)) != first).any()
    # So cold that nothing but the most likely is drawn.
    cold = make_chooser(sample=True, temperature=1e-6)
    np.testing.assert_array_equal(episode(cold), episode(make_chooser()))


def test_one_dimension_of_choices_is_a_number():
    policy = make_chooser(CHOICES.clone(action_sizes=(5,)))
    policy.reset(TARGETS)
    assert policy.act(STATES_TxExS[0]).shape == (E,)
    policy.reset(TARGETS[0])
    assert policy.act(STATES_TxExS[0, 0]) in range(5)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (MODEL, {"sample": True}, "sample=True: found a model of continuous actions"),
        (CHOICES, {"temperature": 0.0}, "temperature=0.0: expected above 0"),
    ],
)
def test_draws_that_cannot_be_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        make_chooser(model, **options)


def test_scaled_actions_are_seen_scaled_and_given_in_the_units_of_the_data():
    low, high = [-3.0, 0.0], [5.0, 0.5]
    plain, scaled = make_policy(), make_policy(action_low=low, action_high=high)
    half = (np.array(high) - low) / 2
    # The same weights see the same: what is fed back is scaled again.
    expected = episode(plain) * half + (np.array(low) + half)
    np.testing.assert_allclose(episode(scaled), expected, rtol=1e-4, atol=1e-5)
