"""The device mesh, shardings and multiple hosts. Only this module knows how a step is distributed over devices."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from squeeze_jax.errors import ConfigError

AXIS = "data"
# XLA runs all-reduces of CPU devices on a pool with one thread per device; if all threads wait for the all-reduce of
# another device, the process aborts. A larger pool avoids this (benchmarks/soak.py).
CPU_POOL_THREADS = "16"
# By default XLA's CPU backend uses 256-bit vectors even if the processor has longer ones, and passes 2-D convolutions
# to YNNPACK, which is slower than the backend itself (benchmarks/networks.py, "ours, XLA's defaults").
CPU_COMPILER_OPTIONS = {
    "xla_cpu_prefer_vector_width": 512,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
}


def prepare_cpu_devices(count: int) -> None:
    """Creates `count` CPU devices; call it before JAX is first used. It has no effect on accelerators.

    Raises:
      ConfigError: JAX was already used.
    """
    if count > 1:
        os.environ.setdefault("NPROC", CPU_POOL_THREADS)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise ConfigError(
            "JAX was used before its devices were created; a config file and the modules that it imports must not run "
            "JAX operations on import."
        ) from error


def join_hosts(coordinator_address: str, num_processes: int, process_id: int) -> None:
    """Connects the processes of one run; call it before JAX is first used.

    Args:
      coordinator_address: host:port of process 0.
      num_processes: the number of processes.
      process_id: the index of this process, starting at 0.
    """
    # This project handles SIGTERM itself; JAX's preemption service would intercept the signal.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(coordinator_address, num_processes, process_id)


@dataclasses.dataclass(frozen=True)
class DeviceMesh:
    """Shards batches over devices and compiles steps for them; the state is replicated.

    Attributes:
      mesh: a JAX mesh with one axis, "data", over the devices of all processes.
      backend: "jit" or "pmap", the transformation that compiles a step; the results are the same.
    """

    mesh: Mesh
    backend: str = "jit"

    @classmethod
    def create(cls, backend: str = "jit", num_devices: int | None = None) -> "DeviceMesh":
        """Creates a mesh of the first `num_devices` devices.

        Args:
          backend: "jit" or "pmap".
          num_devices: by default all devices, but only one if they are CPU devices of a single process.

        Raises:
          ConfigError: there are fewer devices, several processes but not all of their devices are used, or several
            processes use pmap.
        """
        devices = jax.devices()
        if jax.process_count() > 1:
            if backend == "pmap":
                raise ConfigError(
                    "config.run.backend='pmap' supports only one process, because its state could not be saved with "
                    "several. Use 'jit'."
                )
            if num_devices not in (None, len(devices)):
                raise ConfigError(
                    f"config.run.num_devices={num_devices}, but the processes have {len(devices)} devices in total and "
                    f"must use all of them; leave the key out."
                )
        elif num_devices is None:
            num_devices = 1 if devices[0].platform == "cpu" else len(devices)
        if num_devices is not None and num_devices > len(devices):
            raise ConfigError(
                f"config.run.num_devices={num_devices}, but JAX has {len(devices)} {devices[0].platform} device(s). "
                f"To create CPU devices, use `python -m squeeze_jax.main`, or call "
                f"jax.config.update('jax_num_cpu_devices', {num_devices}) before JAX is first used."
            )
        mesh = jax.make_mesh(
            (num_devices or len(devices),),
            (AXIS,),
            axis_types=(jax.sharding.AxisType.Auto,),
            devices=devices[:num_devices],
        )
        return cls(mesh, backend)

    @property
    def num_devices(self) -> int:
        """The number of devices in the mesh."""
        return self.mesh.size

    @property
    def axis_name(self) -> str | None:
        """The axis that a step must average over; None under jit, where a step sees the global batch."""
        return AXIS if self.backend == "pmap" else None

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of arrays that are replicated on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def check_batch_size(self, name: str, batch_size: int, micro_batches: int = 1) -> None:
        """Checks that a batch can be sharded evenly.

        Args:
          name: the config key of the batch size, which the error names.
          batch_size: the size of the global batch.
          micro_batches: the number of parts that the batch is split into.

        Raises:
          ConfigError: it cannot; the message lists the possible device counts.
        """
        part = batch_size // micro_batches
        if part % self.num_devices:
            divisors = [n for n in range(1, part + 1) if part % n == 0]
            parts = f" in {micro_batches} micro-batches" if micro_batches > 1 else ""
            raise ConfigError(
                f"config.{name}={batch_size}{parts} cannot be sharded over {self.num_devices} devices; "
                f"possible device counts: {', '.join(map(str, divisors))}."
            )

    def replicate(self, tree: Any) -> Any:
        """Copies a pytree of arrays to every device; every process passes the same values."""

        def put(leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            return jax.make_array_from_callback(leaf.shape, self.replicated, lambda index: leaf[index])

        return jax.tree.map(put, tree)

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Shards this process's part of a global batch, arrays of (batch, ...), over the devices of this process."""
        if self.backend == "pmap":
            return {name: x.reshape(self.num_devices, -1, *x.shape[1:]) for name, x in batch.items()}
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in batch.items()}

    def prefetch(self, batches: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yields each batch as (on the host, on the devices), with the copy of the next one already in progress.

        Args:
          batches: an endless iterator of batches on the host. Only their arrays are copied to the devices.
        """

        def copy(batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
            return batch, self.shard({name: x for name, x in batch.items() if isinstance(x, np.ndarray)})

        ahead = copy(next(batches))
        for batch in batches:
            current, ahead = ahead, copy(batch)
            yield current

    def compile_train_step(self, step: Callable) -> Callable:
        """Compiles `step(state, batch, seed) -> state`; the input state is donated."""
        if self.backend == "pmap":
            return self._pmap(step, in_axes=(None, 0, None))
        return compile_often(step, donate_argnums=0, out_shardings=self.replicated)

    def compile_eval_step(self, step: Callable) -> Callable:
        """Compiles `step(variables, batch) -> sums`."""
        if self.backend == "pmap":
            return self._pmap(step, in_axes=(None, 0))
        return compile_often(step, out_shardings=self.replicated)

    def _pmap(self, step: Callable, in_axes: tuple[int | None, ...]) -> Callable:
        # With out_axes=None the state is an ordinary replicated array, without a leading device axis.
        return jax.pmap(step, axis_name=AXIS, in_axes=in_axes, out_axes=None, devices=list(self.mesh.devices.flat))


def compile_often(function: Callable, **options: Any) -> Callable:
    """Like jax.jit, for functions that run often: uses this project's compiler options on CPU."""
    is_cpu = jax.default_backend() == "cpu"
    return jax.jit(function, compiler_options=CPU_COMPILER_OPTIONS if is_cpu else None, **options)


def compile_once(function: Callable, **options: Any) -> Callable:
    """Like jax.jit, for functions that run once: uses less optimization, which saves seconds of compilation."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 1}, **options)


def is_main_process() -> bool:
    """Returns whether this is the process that writes the files of the run."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Returns whether the flag is set in any process; all processes must call this at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def wait_for_all(name: str) -> None:
    """Waits until all processes have made this call; `name` identifies it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
