# SPDX-License-Identifier: Apache-2.0
"""The defaults are locked and documented; what is wrong with a config is one line."""

import json
import re

import pytest
from ml_collections import ConfigDict

from dt_jax import config as config_file
from dt_jax.config import (
    RENAMED,
    check,
    default_config,
    flatten,
    naming_keys,
    saved_config,
    unknown,
)
from dt_jax.prompt import documented_keys


def test_a_key_that_does_not_exist_cannot_be_set():
    config = default_config()
    with pytest.raises(AttributeError, match='Did you mean "max_steps"'):
        config.train.max_step = 40
    unlocked = ConfigDict(config.to_dict())
    unlocked.train.max_step = 40
    with pytest.raises(ValueError, match=r"^config: train.max_step: no such key; did "):
        check(unlocked, "config")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("batch_size", 1.5, "config: train.batch_size=1.5: expected one like 64"),
        ("init_from", None, "config: train.init_from=None: expected one like ''"),
    ],
)
def test_a_value_of_another_kind_is_refused(key, value, told):
    config = ConfigDict(default_config().to_dict(), type_safe=False)
    config.train[key] = value
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        check(config, "config")


def test_a_whole_number_may_stand_for_a_float_and_any_for_none():
    config = ConfigDict(default_config().to_dict(), type_safe=False)
    config.optimizer.learning_rate, config.model.n_inner = 1, 7
    config.train.num_train_epochs = 3
    checked = check(config, "config")
    assert checked.is_locked
    assert (checked.optimizer.learning_rate, checked.model.n_inner) == (1.0, 7)
    assert type(checked.train.num_train_epochs) is float
    assert check(default_config(), "config").to_dict() == default_config().to_dict()


def test_the_home_of_the_user_is_a_tilde_in_any_key(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = default_config()
    config.data.path, config.train.init_from = "~/data", "a~/b"
    config.eval.baselines = ("~/ppo.zip", "module:function")
    checked = check(config, "config")
    assert checked.data.path == "/home/me/data"
    assert checked.train.init_from == "a~/b"
    assert checked.eval.baselines == ("/home/me/ppo.zip", "module:function")
    assert config.data.path == "~/data"


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("max_ep_len", "did you mean data.max_ep_len or model.max_ep_len?"),
        ("train.warmup_ratio", "did you mean optimizer.warmup_ratio?"),
        ("data.context_lenght", "did you mean data.context_length?"),
        ("optimizer.lr", "did you mean optimizer.learning_rate?"),
        ("lr", "did you mean optimizer.learning_rate?"),
        ("train.learning_rate", "did you mean optimizer.learning_rate?"),
        ("epochs", "did you mean train.num_train_epochs?"),
        ("batch", "did you mean train.batch_size?"),
        ("context_len", "did you mean data.context_length?"),
        ("K", "did you mean data.context_length?"),
        ("gamma", "did you mean data.discount?"),
        ("steps", "did you mean train.max_steps or train.save_steps?"),
        ("max_step", "did you mean train.max_steps?"),
        ("num_layers", "did you mean model.n_layer?"),
        ("heads", "did you mean model.n_head?"),
        ("hidden_dim", "did you mean model.hidden_size?"),
        ("activation", "did you mean model.activation_function?"),
        ("scheduler", "did you mean optimizer.lr_scheduler_type?"),
        ("clip_grad_norm", "did you mean optimizer.max_grad_norm?"),
        ("betas", "did you mean optimizer.adam_beta1 or optimizer.adam_beta2?"),
        ("env", "did you mean eval.environment?"),
        ("eval.target", "did you mean eval.targets?"),
        ("train.episodes", "did you mean collect.episodes or eval.episodes?"),
        ("eval.episode", "did you mean eval.episodes?"),
        ("rtg_scale", "did you mean data.return_scale?"),
        ("val_fraction", "did you mean data.validation_fraction?"),
        ("zzz", "no such key; dt_jax/config.py has them all"),
    ],
)
def test_the_nearest_right_key_is_named(key, told):
    assert unknown(key).endswith(told)


def test_every_key_has_its_default_and_a_comment():
    documented = {key.name: key for key in documented_keys()}
    defaults = default_config().to_dict()
    assert documented.keys() == flatten(defaults).keys() | (defaults.keys() - {"seed"})
    for name, default in flatten(defaults).items():
        assert documented[name].default == default
        assert documented[name].comment
    assert documented["train.save_steps"].comment == "Updates between two checkpoints."
    assert documented["model"].comment.startswith("HF's DecisionTransformerConfig")


def test_a_run_of_version_0_1_is_read_by_the_new_names(tmp_path):
    old = default_config().to_dict()
    old["hosts"] = old.pop("distributed") | {"heartbeat_seconds": 7}
    old["eval"]["beside"] = ["ppo.zip"]
    old["eval"]["reference_returns"] = [0.0, 2.5]
    del old["eval"]["baselines"], old["eval"]["score_range"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = saved_config(tmp_path)
    check(config, "config")
    assert config.distributed.heartbeat_seconds == 7
    assert config.eval.baselines == ("ppo.zip",)
    assert config.eval.score_range == (0.0, 2.5)
    assert set(RENAMED.values()) <= flatten(config.to_dict()).keys()


@pytest.mark.parametrize(("saved", "read"), [(3, 3.0), (0.5, 0.5)])
def test_epochs_of_a_saved_config_may_be_whole(tmp_path, saved, read):
    old = default_config().to_dict()
    old["train"]["num_train_epochs"] = saved
    (tmp_path / "config.json").write_text(json.dumps(old))
    epochs = saved_config(tmp_path).train.num_train_epochs
    assert (epochs, type(epochs)) == (read, float)


@pytest.mark.parametrize("text", ["[]", "{", '{"train": {"bath_size": 3}}'])
def test_a_config_that_is_none_names_its_file(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"^{tmp_path}/config.json: "):
        saved_config(tmp_path)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("batch_size=0: expected", "train.batch_size=0: expected"),
        ("path=x: discount=2: no", "data.path=x: data.discount=2: no"),
        ("train.batch_size=0: expected", "train.batch_size=0: expected"),
        ("add --config.model.n_layer=2", "add --config.model.n_layer=2"),
        ("a/path=3 and other=4", "a/path=3 and other=4"),
    ],
)
def test_errors_name_the_key_of_an_argument(message, named):
    for kind in (ValueError, FileNotFoundError):
        with pytest.raises(kind) as caught, naming_keys():
            raise kind(message)
        assert str(caught.value) == named
    assert config_file.get_config().to_dict() == default_config().to_dict()
