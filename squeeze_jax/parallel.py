"""Devices, mesh, shardings, several hosts; the only file that knows how a step is spread over devices."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from squeeze_jax.config import ConfigError

AXIS = "data"
# XLA runs all-reduces of CPU devices on a pool of as many threads as devices; when all of them wait for another
# device's all-reduce the process aborts. A larger pool cures it (benchmarks/soak.py).
CPU_POOL_THREADS = "16"
# XLA's CPU backend keeps to vectors of 256 bits where the processor has longer ones, and gives convolutions in 2-D to
# YNNPACK too, which takes longer than the backend itself (benchmarks/networks.py, "ours, XLA's defaults").
CPU_COMPILER_OPTIONS = {
    "xla_cpu_prefer_vector_width": 512,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
}


def prepare_cpu_devices(count: int) -> None:
    """Makes `count` CPU devices; only before JAX is first used, and without effect on accelerators."""
    if count > 1:
        os.environ.setdefault("NPROC", CPU_POOL_THREADS)
    jax.config.update("jax_num_cpu_devices", count)


def join_hosts(coordinator_address: str, num_processes: int, process_id: int) -> None:
    """Connects the processes of one run; only before JAX is first used."""
    # This project stops on SIGTERM by itself; JAX's own service would take the signal away.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(coordinator_address, num_processes, process_id)


@dataclasses.dataclass(frozen=True)
class Parallel:
    """Spreads batches over devices and compiles steps for them; the state is replicated.

    Attributes:
      mesh: one axis, "data", over the devices of all processes.
      backend: "jit" or "pmap". It changes the wrapping of a step and nothing else.
    """

    mesh: Mesh
    backend: str = "jit"

    @classmethod
    def create(cls, backend: str = "jit", num_devices: int | None = None) -> "Parallel":
        """Takes `num_devices` of the devices that exist.

        By default these are all devices, but only one where they are CPU devices of a single process.

        Raises:
          ConfigError: more devices than exist, or pmap with several processes.
        """
        devices = jax.devices()
        if jax.process_count() > 1:
            if backend == "pmap":
                raise ConfigError(
                    "config.run.backend='pmap' serves one process; a pmap state of several cannot be saved. Use 'jit'."
                )
            if num_devices not in (None, len(devices)):
                raise ConfigError(
                    f"config.run.num_devices={num_devices}, but the processes have {len(devices)} devices between "
                    f"them and all are used; leave the key out."
                )
        elif num_devices is None:
            num_devices = 1 if devices[0].platform == "cpu" else len(devices)
        if num_devices is not None and num_devices > len(devices):
            raise ConfigError(
                f"config.run.num_devices={num_devices}, but JAX sees {len(devices)} {devices[0].platform} device(s). "
                f"CPU devices are made by `python -m squeeze_jax.main`, or by "
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
        return self.mesh.size

    @property
    def axis_name(self) -> str | None:
        """What a step must average over: under jit nothing, for it sees the global batch."""
        return AXIS if self.backend == "pmap" else None

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def check_batch_size(self, name: str, batch_size: int, micro_batches: int = 1) -> None:
        """Raises ConfigError unless the batch can be spread evenly; the message names the device counts that can."""
        part = batch_size // micro_batches
        if part % self.num_devices:
            divisors = [n for n in range(1, part + 1) if part % n == 0]
            parts = f" in {micro_batches} micro-batches" if micro_batches > 1 else ""
            raise ConfigError(
                f"config.{name}={batch_size}{parts} cannot be spread over {self.num_devices} devices; "
                f"it can over {', '.join(map(str, divisors))}."
            )

    def replicate(self, tree: Any) -> Any:
        """Puts a tree of arrays that this process holds on every device of all processes."""

        def put(leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            return jax.make_array_from_callback(leaf.shape, self.replicated, lambda index: leaf[index])

        return jax.tree.map(put, tree)

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Spreads this process's part of a global batch over its devices."""
        if self.backend == "pmap":
            return {name: x.reshape(self.num_devices, -1, *x.shape[1:]) for name, x in batch.items()}
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in batch.items()}

    def prefetch(self, batches: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yields each endless batch as (on the host, on the devices) with the copy of the next one already under way.

        The batch on the devices holds its arrays alone.
        """

        def copy(batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
            return batch, self.shard({name: x for name, x in batch.items() if isinstance(x, np.ndarray)})

        ahead = copy(next(batches))
        for batch in batches:
            current, ahead = ahead, copy(batch)
            yield current

    def compile_train_step(self, step: Callable) -> Callable:
        """Compiles `step(state, batch, seed) -> state`; the given state's memory is used again."""
        if self.backend == "pmap":
            return self._pmap(step, in_axes=(None, 0, None))
        return compile_often(step, donate_argnums=0, out_shardings=self.replicated)

    def compile_eval_step(self, step: Callable) -> Callable:
        """Compiles `step(variables, batch) -> sums`."""
        if self.backend == "pmap":
            return self._pmap(step, in_axes=(None, 0))
        return compile_often(step, out_shardings=self.replicated)

    def _pmap(self, step: Callable, in_axes: tuple[int | None, ...]) -> Callable:
        # out_axes None keeps the state an ordinary replicated array, without a leading axis of devices.
        return jax.pmap(step, axis_name=AXIS, in_axes=in_axes, out_axes=None, devices=list(self.mesh.devices.flat))


def compile_often(function: Callable, **options: Any) -> Callable:
    """Like jax.jit, for what runs often, with the compiler options that are the fastest on CPU; others get none."""
    is_cpu = jax.default_backend() == "cpu"
    return jax.jit(function, compiler_options=CPU_COMPILER_OPTIONS if is_cpu else None, **options)


def compile_once(function: Callable, **options: Any) -> Callable:
    """Like jax.jit, for what runs once: less optimisation gives the same numbers and spares seconds of compilation."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 1}, **options)


def is_main_process() -> bool:
    """Whether this process writes the files of the run."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them must call it at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def wait_for_all(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
