# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: how they meet, exchange values and errors, and end.

Every process runs the same command in the same order, so that their collectives match.
The first one (process 0) alone owns the workdir. Without a cluster there is one
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

from dt_jax.system.text import WIDTH, fit, shorten

LOST = 4  # the exit status when another process has died or did not come
LOST_SIGNS = "Gloo|NCCL|UNAVAILABLE"  # in the error of a process that waits for it
MESSAGE_BYTES = 1000  # of an error that is sent to all


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
            raise ValueError(f"distributed.{key}={value}: expected at least 1")
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
            f"distributed.cluster={cluster}: {error} "
            "--config.distributed.cluster=none starts one process alone; "
            "docs/many-devices.md has examples of several"
        ) from None
    finally:
        timer.cancel()


def describe_devices() -> str:
    """'JAX 0.10.2, 2 x NVIDIA H200'; starts JAX's backend.

    Raises:
      ValueError: JAX finds no device of the kind that the environment asks for.
    """
    try:
        kind = jax.devices()[0].device_kind
    except (RuntimeError, AssertionError):  # the latter of JAX 0.10
        raise ValueError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}: JAX {jax.__version__} "
            "finds no such device; leave it out, or install JAX for that device"
        ) from None
    return f"JAX {jax.__version__}, {jax.device_count()} x {kind}"


def _number(name):
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise ValueError(f"{name}={text!r} in the environment: expected a number")
    return text and int(text)


def _give_up(seconds):
    print(
        f"error: distributed.initialization_timeout: after {seconds} s not all "
        "processes have met; check that all were started and can reach the address of "
        "the first",
        file=sys.stderr,
        flush=True,
    )
    os._exit(LOST)


@contextmanager
def abort_all():
    """An exception in the block ends this process at once, and so the whole run.

    JAX would first wait minutes for the other processes, which wait for this one.
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
def exit_if_lost():
    """Around a wait for all devices: if another process has died, say so and exit.

    Raises:
      SystemExit: with status LOST.
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
def raise_everywhere():
    """A ValueError or OSError that one process raises in the block, all raise.

    So none waits for one that has refused to start. Nothing in the block may wait for
    another process.
    """
    if jax.process_count() == 1:
        yield
        return
    raised = None
    try:
        yield
    except (ValueError, OSError) as error:
        raised = error
    message = f"{raised or ''}".encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES, b"\0")
    with exit_if_lost():
        everyones = multihost_utils.process_allgather(np.frombuffer(message, np.uint8))
    if raised:
        raise raised
    for process, letters in enumerate(everyones):
        if letters[0]:
            message = letters.tobytes().rstrip(b"\0").decode(errors="replace")
            raise ValueError(f"process {process}: {message}")


def first_then_rest(make: Callable):
    """What `make` returns; the first process runs it before the rest.

    So the first may leave files for the others.

    Raises:
      ValueError, OSError: any process did.
    """
    for others in (False, True):
        with raise_everywhere():
            if others == (jax.process_index() > 0):
                made = make()
    return made


def broadcast(value):
    """The first process's value in all of them, whatever they gave."""
    if jax.process_count() == 1:
        return value
    mine = np.frombuffer(pickle.dumps(value), np.uint8)
    with exit_if_lost():
        size = int(multihost_utils.broadcast_one_to_all(np.int64(len(mine))))
        shared = multihost_utils.broadcast_one_to_all(np.resize(mine, size))
    return pickle.loads(shared.tobytes())


class AgreedStop:
    """Whether any process has caught a signal; all processes learn it at the same call.

    The answer is that of the call before, which the devices have reduced meanwhile, so
    nothing waits for it. A single process knows at once.
    """

    def __init__(self):
        mesh = Mesh(np.array(jax.devices()), ("devices",))
        self._per_device = NamedSharding(mesh, PartitionSpec("devices"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._max = jax.jit(lambda signal_G: signal_G.max(), out_shardings=everywhere)
        self._pending = 0

    def __call__(self, caught: list[int]) -> bool:
        """`caught`: this process's signals; one caught elsewhere is appended."""
        if jax.process_count() == 1:
            return bool(caught)
        mine = np.full(jax.local_device_count(), caught[0] if caught else 0, np.int32)
        with exit_if_lost():
            signal = int(self._pending)
            signal_G = jax.make_array_from_process_local_data(self._per_device, mine)
            self._pending = self._max(signal_G)
        if signal and not caught:
            caught.append(signal)
        return bool(signal)


@contextmanager
def heartbeat(seconds: int, reached: Callable[[], int]):
    """Of several processes, each writes a line to stderr every so many seconds.

    `reached` returns the number of updates made. When a run stands still, the process
    whose line is missing is at fault.
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


def print_once(text: str) -> None:
    """Print in the first process alone, in lines of at most 80 columns."""
    if jax.process_index() == 0:
        print(fit(text), flush=True)


@contextmanager
def timed(what: str):
    """Print what is waited for, then the seconds that it took; in the first process.

    On a terminal they are counted meanwhile, in one line that is written anew.
    """
    if jax.process_index():
        yield
        return
    what = shorten(what, WIDTH - len(": 100000.0 s"))
    live, ended, start = sys.stdout.isatty(), threading.Event(), time.perf_counter()

    def show(digits, end=""):
        seconds = f"{time.perf_counter() - start:.{digits}f} s"
        print(f"\r{what}: {seconds}" if live else seconds, end=end, flush=True)

    def count():
        show(0)
        while not ended.wait(1.0):
            show(0)

    if live:
        thread = threading.Thread(target=count, name="seconds", daemon=True)
        thread.start()
    else:
        print(f"{what}: ", end="", flush=True)
    try:
        yield
    finally:
        ended.set()
        if live:
            thread.join()
        show(1, "\n")


def leave() -> bool:
    """Wait for all processes, then disconnect; True in the first, which goes on."""
    first = jax.process_index() == 0
    if jax.distributed.is_initialized():
        with exit_if_lost():
            multihost_utils.sync_global_devices("leave")
        jax.distributed.shutdown()
    return first
