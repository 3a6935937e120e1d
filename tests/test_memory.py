"""What a process has imported and keeps, each in a child process, for neither can be undone."""

import os
import platform
import subprocess
import sys

import pytest
from conftest import ROOT

from squeeze_jax.runtime import memory

# A step with a temporary buffer of 128 MiB, that is 32,768 pages; prints the page faults of the last twenty.
STEPS = """
import resource
import jax, jax.numpy as jnp

step = jax.jit(lambda x: jax.lax.optimization_barrier(jnp.sin(x)).sum())
x = jnp.ones((32, 2**20))
for i in range(25):
    if i == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def output_of(code: str, *arguments: str, tunables: str | None = "") -> str:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=environment
    ).stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_training_keeps_the_memory_of_a_step_for_the_next():
    keeping = "from squeeze_jax.runtime.memory import keep_freed_memory as keep; keep()"
    # The heap may still grow now and then.
    assert int(output_of(keeping + STEPS, tunables=None)) < 5 * 32768
    assert int(output_of("import numpy" + STEPS, tunables=memory.environment()["GLIBC_TUNABLES"])) < 5 * 32768
    assert int(output_of("import numpy" + STEPS)) > 16 * 32768  # given back and mapped again


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only then the program starts again")
def test_a_program_starts_again_once_as_it_was():
    code = """
import os, sys
print(os.getpid(), sys.argv[1:], len(sys.orig_argv), "GLIBC_TUNABLES" in os.environ, flush=True)
from squeeze_jax.runtime.memory import keep_freed_memory
keep_freed_memory()
"""
    first, second = output_of(code, "-a", "b c", tunables=None).splitlines()
    assert second == first.replace("False", "True") != first
    assert len(output_of(code, tunables="glibc.malloc.perturb=0").splitlines()) == 1, "the user's own stay"


def test_the_documentation_names_the_same_tunables():
    (variable,) = memory.environment().items()
    assert f"export {'='.join(variable)}\n" in (ROOT / "docs" / "speed.md").read_text()


def test_the_package_imports_on_demand():
    checks = """
import sys, squeeze_jax
assert not {"jax", "numpy"} & set(sys.modules)
from squeeze_jax import Network, load, models, pretrained
assert squeeze_jax.models is models is sys.modules["squeeze_jax.models"]
assert load is sys.modules["squeeze_jax.network"].load
assert set(squeeze_jax.__all__) == set(dir(squeeze_jax))
print(hasattr(squeeze_jax, "lod"))
"""
    assert output_of(checks) == "False\n"
