# SPDX-License-Identifier: Apache-2.0
"""Acting in PyTorch with an exported Decision Transformer.

`--mode=export` puts this file beside the weights as acting.py, so it needs torch and
transformers alone. It acts as `dt_jax.Policy` does, in one environment.
"""

import json
import os
from pathlib import Path

import torch
from transformers import DecisionTransformerModel

FILES = ("config.json", "model.safetensors", "normalization.json")
ACTION_PADDING = -10.0
FARTHEST = 1e12  # scaled returns to go end here


class Policy:
    """Acts towards a target return.

    Args:
      source: an exported folder, or its id on the Hub ('USER/NAME').
    """

    def __init__(self, source: str | os.PathLike):
        folder = Path(source)
        if not folder.is_dir():
            from huggingface_hub import hf_hub_download

            for name in FILES:
                folder = Path(hf_hub_download(str(source), name)).parent
        self.model = DecisionTransformerModel.from_pretrained(folder).eval()
        norm = json.loads((folder / "normalization.json").read_text())
        self._mean_S = torch.tensor(norm["state_mean"])
        self._std_S = torch.tensor(norm["state_std"])
        self._context_length = norm["context_length"]
        self._last_timestep = norm["max_ep_len"] - 1
        self._return_scale = norm["return_scale"]
        self._discount = norm.get("discount", 1.0)
        self._means_T = norm.get("mean_returns_to_go", [0.0])
        self._action_sizes = getattr(self.model.config, "action_sizes", None)
        self._center_A, self._half_A = torch.tensor(0.0), torch.tensor(1.0)
        if "action_low" in norm:  # what the model predicts lies between -1 and 1
            low_A, high_A = (torch.tensor(norm[f"action_{k}"]) for k in ("low", "high"))
            self._center_A, half_A = (high_A + low_A) / 2, (high_A - low_A) / 2
            self._half_A = torch.where(half_A > 0, half_A, 1.0)

    def reset(self, target_return: float) -> None:
        """Begin an episode; the target is in units of the reward."""
        self._to_go, self._time = float(target_return), 0
        K, config = self._context_length, self.model.config
        self._context = {
            "states": torch.zeros(1, K, config.state_dim),
            "actions": torch.full((1, K, config.act_dim), ACTION_PADDING),
            "returns_to_go": torch.zeros(1, K, 1),
            "timesteps": torch.zeros(1, K, dtype=torch.long),
            "attention_mask": torch.zeros(1, K),
        }

    @torch.no_grad()
    def act(self, state, reward: float | None = None) -> torch.Tensor:
        """The next action (A), for a raw state (S) and what the last action brought.

        Of discrete actions it is whole numbers, or one where they have one dimension.
        The reward is not read at the first step of an episode; the others need it.
        """
        if self._time and reward is None:
            raise ValueError("reward: expected what the action before brought")
        if self._time and self._discount:  # at 0 the target is asked for at each step
            farthest = FARTHEST * self._return_scale
            to_go = (self._to_go - float(reward)) / self._discount
            self._to_go = max(-farthest, min(farthest, to_go))
        state_S = torch.as_tensor(state, dtype=torch.float32)
        self._append("states", (state_S - self._mean_S) / self._std_S)
        self._append("actions", ACTION_PADDING)  # not known yet
        relative = self._to_go - self._means_T[min(self._time, len(self._means_T) - 1)]
        self._append("returns_to_go", relative / self._return_scale)
        self._append("timesteps", min(self._time, self._last_timestep))
        self._append("attention_mask", 1.0)
        self._time += 1
        predicted_A = self.model(**self._context).action_preds[0, -1]
        if not self._action_sizes:
            self._context["actions"][0, -1] = predicted_A
            return predicted_A * self._half_A + self._center_A
        blocks = predicted_A.split(self._action_sizes)
        choices = torch.stack([logits.argmax() for logits in blocks])
        one_hot = [torch.arange(len(x)) == c for x, c in zip(blocks, choices)]  # noqa: B905
        self._context["actions"][0, -1] = torch.cat(one_hot).float()
        return choices if len(blocks) > 1 else choices[0]

    def _append(self, key, value):
        rolled = self._context[key].roll(-1, dims=1)
        rolled[0, -1] = value
        self._context[key] = rolled
