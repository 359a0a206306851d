# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: how they meet, what they tell each other, how they part.

Every process runs the same command and goes the same way, so that their collectives
match. The first one (process 0) alone owns the workdir. Without a cluster there is one
process, and nothing here costs anything.
"""

import atexit
import os
import pickle
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LOST = 4  # the exit status when other processes have died or did not come
LOST_SIGNS = "Gloo|NCCL|UNAVAILABLE"  # in the error of who waits for a dead one
MESSAGE_BYTES = 1000  # of an error that is told to all


def join(
    *, cluster: str, initialization_timeout: int, heartbeat_timeout_seconds: int
) -> None:
    """Meet the other processes that the cluster has started, if it has.

    To be called before JAX computes anything.

    Args:
      cluster: 'auto' asks JAX, which knows Slurm, Open MPI, Kubernetes and Cloud TPU;
        'none' is one process alone; else JAX's name of one cluster ('mpi4py', say). The
        environment's JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
        stand in for what the cluster does not tell, or for a cluster.
      initialization_timeout: seconds after which this process ends, if not all came.
      heartbeat_timeout_seconds: a process silent for so long is dead, which ends all.

    Raises:
      ValueError: the cluster does not tell what is needed, or there is no such cluster.
    """
    for key, value in (
        ("initialization_timeout", initialization_timeout),
        ("heartbeat_timeout_seconds", heartbeat_timeout_seconds),
    ):
        if value < 1:
            raise ValueError(f"hosts.{key}={value}: expected at least 1")
    if cluster == "none":
        return
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    # It would take SIGTERM for itself; the run has its own answer to that.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX itself would abort with a stack trace; it is given more time than we take.
    timer = threading.Timer(initialization_timeout, _give_up, (initialization_timeout,))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            address,
            num_processes=_number("JAX_NUM_PROCESSES"),
            process_id=_number("JAX_PROCESS_ID"),
            cluster_detection_method=None if cluster == "auto" else cluster,
            initialization_timeout=initialization_timeout + 60,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        )
    except (ValueError, RuntimeError) as error:
        if cluster == "auto" and not address and "coordinator_address" in str(error):
            return  # no cluster that JAX knows
        raise ValueError(
            f"hosts.cluster={cluster}: {error} --config.hosts.cluster=none starts one "
            "process alone; README, 'Devices and hosts', has examples of several"
        ) from None
    finally:
        timer.cancel()


def _number(name):
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise ValueError(f"{name}={text!r} in the environment: expected a number")
    return text and int(text)


def _give_up(seconds):
    print(
        f"error: hosts.initialization_timeout: after {seconds} s not all processes "
        "have met; look whether all were started, and reach the first one's address",
        file=sys.stderr,
        flush=True,
    )
    os._exit(LOST)


@contextmanager
def fate():
    """An exception ends this process at once, and with it, sooner or later, all.

    JAX would first wait minutes for the others, which wait for this one.
    """
    try:
        yield
    except BaseException as error:
        if jax.distributed.is_initialized():
            refused = isinstance(error, ValueError | OSError)
            # At exit what is told has been printed; JAX's own waiting comes later.
            atexit.register(_end, getattr(error, "code", 2 if refused else 1))
        raise


def _end(status):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def alive():
    """Of a wait for what all devices make: tells in one line if others have died.

    Raises:
      SystemExit: LOST.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        connected = jax.distributed.is_initialized()
        if not (connected and re.search(LOST_SIGNS, str(error))):
            raise
        cause = " ".join(str(error).split())[:200]
        print(
            # On a line of its own, not behind the progress bar.
            f"\nerror: process {jax.process_index()} has lost another one ({cause}); "
            "its output tells why; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        raise SystemExit(LOST) from None


@contextmanager
def together():
    """What any process raises within (ValueError, OSError), all of them raise.

    So none waits for one that has refused to start. Nothing within may wait for others.
    """
    if jax.process_count() == 1:
        yield
        return
    raised = None
    try:
        yield
    except (ValueError, OSError) as error:
        raised = error
    told = f"{raised or ''}".encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES, b"\0")
    with alive():
        everyones = multihost_utils.process_allgather(np.frombuffer(told, np.uint8))
    if raised:
        raise raised
    for process, letters in enumerate(everyones):
        if letters[0]:
            message = letters.tobytes().rstrip(b"\0").decode(errors="replace")
            raise ValueError(f"process {process}: {message}")


def in_turn(make: Callable):
    """What `make` gives, in the first process first: it may leave files for the rest.

    Raises:
      ValueError, OSError: any process did.
    """
    for others in (False, True):
        with together():
            if others == (jax.process_index() > 0):
                made = make()
    return made


def share(value):
    """The first process's value in all of them, whatever they gave."""
    if jax.process_count() == 1:
        return value
    mine = np.frombuffer(pickle.dumps(value), np.uint8)
    with alive():
        size = int(multihost_utils.broadcast_one_to_all(np.int64(len(mine))))
        shared = multihost_utils.broadcast_one_to_all(np.resize(mine, size))
    return pickle.loads(shared.tobytes())


class Vote:
    """Whether a process has caught a signal: all find out in the same call.

    The outcome is that of the vote before, which the devices have counted behind the
    call before: nothing waits for it. One process alone knows at once.
    """

    def __init__(self):
        mesh = Mesh(np.array(jax.devices()), ("devices",))
        self._ballots = NamedSharding(mesh, PartitionSpec("devices"))
        outcome = NamedSharding(mesh, PartitionSpec())
        self._count = jax.jit(lambda ballots_G: ballots_G.max(), out_shardings=outcome)
        self._running = 0

    def __call__(self, caught: list[int]) -> bool:
        """`caught`: the signals of this process; gets the one caught elsewhere."""
        if jax.process_count() == 1:
            return bool(caught)
        mine = np.full(jax.local_device_count(), caught[0] if caught else 0, np.int32)
        with alive():
            outcome = int(self._running)
            ballots_G = jax.make_array_from_process_local_data(self._ballots, mine)
            self._running = self._count(ballots_G)
        if outcome and not caught:
            caught.append(outcome)
        return bool(outcome)


@contextmanager
def heartbeat(seconds: int, reached: Callable[[], int]):
    """Of several processes, each writes a line on stderr every so many seconds.

    `reached` tells the updates made. Where all stand still, the one that is missing
    among the lines is at fault.
    """
    if jax.process_count() == 1:
        yield
        return
    ended = threading.Event()
    name = f"process {jax.process_index()} of {jax.process_count()}"
    name += f" on {socket.gethostname()}"

    def beat():
        while not ended.wait(seconds):
            now = time.strftime("%H:%M:%S")
            print(f"{now} {name}: alive, update {reached():,}", file=sys.stderr)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def say(text: str) -> None:
    """Print in the first process alone."""
    if jax.process_index() == 0:
        print(text, flush=True)


def part() -> bool:
    """All meet a last time; True in the process that goes on, alone: the first."""
    first = jax.process_index() == 0
    if jax.distributed.is_initialized():
        with alive():
            multihost_utils.sync_global_devices("part")
        jax.distributed.shutdown()
    return first
