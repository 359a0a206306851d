# SPDX-License-Identifier: Apache-2.0
"""The notebook's recipe, and the only home of defaults.

    python main.py --config configs/base.py

trains it on the simulated market, one to two minutes on two CPU cores. Other configs
import this one and change a few keys; any key can be given at the prompt:
--config.train.batch_size=128.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()

    # Of the first weights, the batches and dropout; with the step it determines both.
    config.seed = 0

    config.data = data = ConfigDict()
    # A folder saved by `save_to_disk`; empty: the simulated market, made once.
    data.path = ""
    # Steps of a segment (the collator's max_len).
    data.context_length = 20
    # Timesteps from here on are read as the one before (the collator's max_ep_len).
    data.max_ep_len = 985
    # Returns-to-go are divided by it (the collator's scale).
    data.return_scale = 1000.0
    # Of the returns-to-go; 1 is the plain sum.
    data.discount = 1.0
    # 'length': trajectories are drawn in proportion to their length; 'uniform': alike.
    data.weighting = "length"
    # Cut a row after each `done` inside it, so that returns do not run across a reset.
    data.split_on_dones = False
    # Share of the trajectories that is never trained on, only measured; 0: none.
    data.validation_fraction = 0.0
    # 'host': NumPy batches are sent ahead; 'device': the whole store lies on the
    # device; 'auto': on the device where it fits.
    data.placement = "auto"
    # Of the states in a store on the device: float32, or bfloat16 in half the memory.
    data.store_dtype = "float32"

    # HF's DecisionTransformerConfig; state_dim and act_dim come from the data.
    config.model = model = ConfigDict()
    model.hidden_size = 128
    model.n_layer = 3
    model.n_head = 1
    # Width of the MLP; None: four times hidden_size.
    model.n_inner = config_dict.placeholder(int)
    model.activation_function = "relu"
    # Rows of the timestep table; at least data.max_ep_len.
    model.max_ep_len = 4096
    # Actions are squashed to (-1, 1).
    model.action_tanh = True
    model.resid_pdrop = 0.1
    model.embd_pdrop = 0.1
    model.attn_pdrop = 0.1
    model.layer_norm_epsilon = 1e-5
    model.initializer_range = 0.02
    # What layers compute in: float32, bfloat16 or float16. Parameters stay float32.
    model.dtype = "float32"

    config.optimizer = optimizer = ConfigDict()
    optimizer.learning_rate = 1e-4
    # Not on biases and layer norms, nor on what gets no gradient.
    optimizer.weight_decay = 1e-4
    optimizer.adam_beta1 = 0.9
    optimizer.adam_beta2 = 0.999
    optimizer.adam_epsilon = 1e-8
    # Gradients are clipped to this global norm.
    optimizer.max_grad_norm = 0.25
    # Share of all updates in which the learning rate rises from 0.
    optimizer.warmup_ratio = 0.1
    # 'linear', 'cosine', 'constant_with_warmup' or 'constant'.
    optimizer.lr_scheduler_type = "linear"

    config.train = train = ConfigDict()
    # An epoch is ceil(trajectories / batch_size) updates.
    train.num_train_epochs = 120
    # Updates in all; above 0 it overrides num_train_epochs.
    train.max_steps = 0
    # A Hugging Face folder or a workdir whose weights to start from; empty: none.
    train.init_from = ""
    # Segments of an update, over all devices together.
    train.batch_size = 64
    # Updates that one call makes on the device before the host looks again.
    train.updates_per_call = 10
    # Updates between two records of metrics.jsonl (the notebook has 500).
    train.logging_steps = 20
    # Updates between two checkpoints, and how many of these are kept.
    train.save_steps = 500
    train.save_total_limit = 3
    # An update whose loss or gradient is not finite is skipped; after this many in a
    # row the run stops.
    train.max_bad_updates = 10

    # After training, and with --mode=evaluate, the model acts towards each target.
    config.eval = evaluation = ConfigDict()
    # A Gymnasium id or 'module:callable'; empty: the simulated market where data.path
    # is empty, else none.
    evaluation.environment = ""
    # Its arguments, as JSON: '{"market": "prices.csv"}'.
    evaluation.environment_kwargs = "{}"
    # Returns to aim at, in raw reward; empty: 10, 50, 90 and 100 % of the data's.
    evaluation.targets = ()
    # Episodes for each target, on the same seeds.
    evaluation.episodes = 20
    # Others on the same seeds: 'module:callable' (observations -> actions), a .zip of
    # stable-baselines3, a workdir or a Hugging Face folder.
    evaluation.beside = ()
    # Returns that are normalised to 0 and to 100; empty: that of random actions, and
    # the data's 90 % quantile.
    evaluation.reference_returns = ()

    # --mode=collect: an actor's episodes in eval.environment, to <workdir>/dataset.
    config.collect = collect = ConfigDict()
    # 'module:callable' or a .zip of stable-baselines3.
    collect.actor = ""
    collect.episodes = 1000

    # A run of several processes, on one host or many: see the README.
    config.hosts = hosts = ConfigDict()
    # 'auto': what JAX finds (Slurm, Open MPI, Kubernetes, Cloud TPU); 'none': this
    # process alone; or one by JAX's name of it, such as 'mpi4py'.
    hosts.cluster = "auto"
    # Seconds after which a process ends if not all of them have met.
    hosts.initialization_timeout = 300
    # When one has been silent for so many seconds, the others end.
    hosts.heartbeat_timeout_seconds = 60
    # Seconds between two lines of a process that say it is alive.
    hosts.heartbeat_seconds = 60

    config.log = log = ConfigDict()
    # Also send the metrics to Weights & Biases (pip install wandb).
    log.wandb = False

    return config
