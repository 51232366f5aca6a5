"""Several devices, and several processes, for one run: where each array is, and who writes.

Data parallel: every device has its share of each batch, and all of the state. jit divides the step by where the arrays
are, so sums over the batch are over all of it: the loss, batch normalisation's statistics, and the gradients, which are
added up over the devices once a step, as many bytes as there are parameters.

FSDP-like: each large array of the state is divided too, along its longest axis that the devices can share. The step
gathers the parameters before it uses them, and each device updates its part of them.

Spatial: the devices of a mesh are groups; a group shares its images by their height (spatial.py), the groups the batch.

Every process runs the same program on the same settings; the first of them leads, and alone writes what the run leaves
behind. The others need no common file system: what the run goes on from is sent to them.

    layout = make_layout(settings)          one device, or a mesh
    state = layout.put_state(state)         onto the devices
    batch = layout.put_batch(batch)         each device's share of the batch
    layout.local(state)                     whole, and this process' own
"""

import contextlib
import ctypes
import dataclasses
import functools
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = Any
AXIS = "devices"
ROWS = "rows"  # the mesh axis of devices that share the height of their images
SMALLEST = 1 << 10  # elements of an array that is worth dividing
HEARTBEAT_SECONDS = 10  # after which a process that says nothing counts as gone


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the arrays of a run are. Without a mesh, on one device, every function gives back what it was given."""

    mesh: Mesh | None = None
    fsdp: bool = False
    spatial: int = 1  # devices that share the height of an image

    @property
    def count(self) -> int:
        """Devices."""
        return 1 if self.mesh is None else self.mesh.size

    def _spread(self, *axes: str | tuple[str, ...] | None) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _of(self, leaf: Any) -> NamedSharding:
        """The sharding of one array of the state."""
        if not self.fsdp or np.size(leaf) < SMALLEST:
            return self._spread()
        shape = np.shape(leaf)
        longest = max(range(len(shape)), key=lambda i: (shape[i] % self.count == 0, shape[i]))
        if shape[longest] % self.count:
            return self._spread()
        assert self.mesh is not None
        return self._spread(*(self.mesh.axis_names if i == longest else None for i in range(len(shape))))

    def put_state(self, tree: Tree) -> Tree:
        """The state, which every process has whole, on the devices."""
        return tree if self.mesh is None else jax.tree.map(lambda leaf: _placed(leaf, self._of(leaf)), tree)

    def put_batch(self, batch: Tree) -> Tree:
        """Arrays, of which every process has all rows, divided among the devices by rows."""
        return batch if self.mesh is None else jax.tree.map(lambda leaf: _placed(leaf, self._spread(AXIS)), batch)

    def jit(self, fun: Callable[..., Any], *outputs: Any, **options: Any) -> Any:
        """jax.jit of a function whose results are like `outputs` of the state, or None for whole on each device.

        With no `outputs` at all the one result is whole.
        """
        if self.mesh is None:
            return jax.jit(fun, **options)
        whole = self._spread()
        shardings = tuple(whole if tree is None else jax.tree.map(self._of, tree) for tree in outputs)
        return jax.jit(fun, out_shardings=shardings or whole, **options)

    def gathered(self, params: Tree) -> Tree:
        """Inside the step: parameters whole on every device, for as long as they are used."""
        return jax.lax.with_sharding_constraint(params, self._spread()) if self.fsdp else params

    def local(self, tree: Tree) -> Tree:
        """Arrays of the state whole and on a device of this process. Every process has to call it."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), _copy(self._spread())(tree))

    def rows(self, batch: int) -> int:
        """The least number of images, not below `batch`, that the devices can share evenly."""
        groups = self.count // self.spatial
        return -(-batch // groups) * groups


ONE_DEVICE = Layout()


@functools.lru_cache
def _copy(sharding: NamedSharding) -> Callable[[Tree], Tree]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


def _placed(leaf: Any, sharding: NamedSharding) -> jax.Array:
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def make_layout(devices: int, fsdp: bool, batch: int, accumulate: int = 1, spatial: int = 1) -> Layout:
    """The layout for so many devices, 0 for all; ValueError where there are fewer or they cannot share a batch."""
    there = jax.devices()
    if devices > len(there):
        raise ValueError(f"devices={devices}: there are only {len(there)} ({there[0].platform})")
    if jax.process_count() > 1 and devices not in (0, len(there)):
        raise ValueError(f"devices={devices}: {jax.process_count()} processes use all their {len(there)} devices")
    count = devices or len(there)
    if count % spatial:
        raise ValueError(f"spatial={spatial}: must divide the number of devices, {count}")
    groups = count // spatial
    if batch % (groups * accumulate):
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        each = f"{groups} groups of {spatial} devices" if spatial > 1 else f"{count} devices"
        raise ValueError(f"batch={batch}: {each} cannot share it evenly{parts}")
    if count == 1:
        return Layout()
    shape, names = ((groups, spatial), (AXIS, ROWS)) if spatial > 1 else ((count,), (AXIS,))
    kinds = (jax.sharding.AxisType.Auto,) * len(names)
    return Layout(jax.make_mesh(shape, names, devices=there[:count], axis_types=kinds), fsdp, spatial)


# Processes.


class ProcessLost(RuntimeError):
    """Another process of the run has stopped."""


def leads() -> bool:
    """Whether this process writes what the run leaves behind."""
    return jax.process_index() == 0


@contextlib.contextmanager
def processes(distributed: bool, coordinator: str, process: int, count: int) -> Iterator[None]:
    """While the body runs, this process is one of `count` that share the run, where it is distributed.

    Where coordinator, process and count are not given (empty, -1, 0), the cluster is asked, as jax.distributed does.

    Raises:
      ValueError: the processes cannot find one another.
      ProcessLost: another process has stopped.
    """
    if not distributed:
        yield
        return
    # A process whose peer is gone shall say so itself; else jax ends it in the middle of whatever it does.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator or None,
            count or None,
            process if process >= 0 else None,
            initialization_timeout=60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"distributed: {str(error).splitlines()[0]}") from error
    watch = _Watch(coordinator.rsplit(":", 1)[0])
    try:
        with _said_on_abort():
            yield
    except jax.errors.JaxRuntimeError as error:
        raise ProcessLost(_lost()) from error
    watch.done()
    jax.distributed.shutdown()
    watch.close()


def _lost() -> str:
    return (
        f"process {jax.process_index()} of {jax.process_count()}: another process has stopped; "
        "--resume goes on from the last checkpoint, with any number of devices"
    )


@contextlib.contextmanager
def _said_on_abort() -> Iterator[None]:
    """While the body runs, an abort says that another process has stopped, and is status 1.

    Where one device's collective operation has failed, since its peer is gone, and another device's still waits, what
    they send one another no longer matches: gloo then aborts from a thread of its own, sooner at times than _Watch sees
    the peer go. No exception tells, and Python's own handlers run too late: this one is C's.
    """
    if jax.process_count() == 1 or os.name != "posix":
        yield
        return
    line = f"train: {_lost()}\n".encode()

    def said(number: int) -> None:
        del number
        os.write(2, line)
        os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(said)
    install = ctypes.CDLL(None).signal
    install.restype, install.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = install(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        install(signal.SIGABRT, before)


class _Watch:
    """A connection from the leading process to each other one. Where one breaks, this process ends, and says why.

    A collective operation that waits for a process that is gone may wait for ever.
    """

    def __init__(self, host: str):
        self._done, self._threads = False, []
        if jax.process_count() == 1:
            self._sockets: list[socket.socket] = []
            return
        server = socket.create_server(("", 0)) if leads() else None
        mine = socket.gethostbyname(host or socket.gethostname()) if server else "0.0.0.0"
        told = np.array([*map(int, mine.split(".")), server.getsockname()[1] if server else 0], np.int32)
        *address, port = map(int, sent(told))
        if server is None:
            self._sockets = [socket.create_connection((".".join(map(str, address)), port), timeout=60)]
        else:
            server.settimeout(60)
            self._sockets = [server.accept()[0] for _ in range(jax.process_count() - 1)]
            server.close()
        for each in self._sockets:
            each.setblocking(True)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that is gone closes nothing
            self._threads.append(threading.Thread(target=self._wait, args=(each,), daemon=True))
            self._threads[-1].start()

    def _wait(self, connection: socket.socket) -> None:
        try:
            ended = connection.recv(1)
        except OSError:
            ended = b""
        if ended:  # it ends as it should: wait until it has left
            with contextlib.suppress(OSError):
                connection.recv(1)
        elif not self._done:
            print(f"train: {_lost()}", file=sys.stderr)
            leave(1)

    def done(self) -> None:
        """Tells the others that this process ends as it should; the leading one waits until they have left.

        They leave jax's cluster, which is at the leading process: were it gone first, jax would end them with an abort.
        """
        self._done = True
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.sendall(b".")
        for each in self._threads if leads() else ():
            each.join(HEARTBEAT_SECONDS)

    def close(self) -> None:
        """This process has left."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def leave(status: int) -> None:
    """Ends this process; at once where others might be waiting for it, which then know."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@contextlib.contextmanager
def leader_first(name: str) -> Iterator[None]:
    """The body runs in the leading process, then in all others."""
    wait = jax.process_count() > 1
    if wait and not leads():
        multihost_utils.sync_global_devices(name)
    yield
    if wait and leads():
        multihost_utils.sync_global_devices(name)


def sent(tree: Tree) -> Tree:
    """The leading process' arrays, in every process; shapes and types must be the same."""
    return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree


def any_process(value: bool) -> bool:
    """Whether it is true in any process. Every process has to call it."""
    return bool(multihost_utils.process_allgather(np.array(value)).any()) if jax.process_count() > 1 else value


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what a process writes that does not lead; it goes with it."""
    with tempfile.TemporaryDirectory(prefix="train-") as folder:
        yield Path(folder)


def agreed(asked: bool, ask: bool) -> bool:
    """Whether all processes are to stop: of one alone as it is asked, of several where `ask` says that all ask."""
    if jax.process_count() == 1:
        return asked
    return any_process(asked) if ask else False
