"""The cache of compiled steps: where it lies, that it is used, kept small, and never in the way."""

import os
import sys

import jax
import pytest
from conftest import ROOT, Child

from squeeze_jax.runtime import compilation_cache


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """As if nobody had named a folder."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_second_process_finds_what_the_first_one_compiled(tmp_path):
    code = (
        "import jax; from squeeze_jax.runtime import compilation_cache; compilation_cache.enable();"
        "jax.monitoring.register_event_listener(lambda event, **_: print(event));"
        "jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((3, 3)))"
    )
    env = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": "", "PYTHONPATH": str(ROOT)}
    texts = [Child([sys.executable, "-c", code], tmp_path / f"{i}.log", env).succeed() for i in range(2)]
    assert ["/jax/compilation_cache/cache_hits" in text for text in texts] == [False, True]
    (folder,) = (tmp_path / "squeeze_jax").iterdir()
    assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_that_was_named_stays(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "named"))
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "named")


def test_a_home_that_cannot_be_written_means_no_cache(no_cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None


def test_the_oldest_files_are_deleted(no_cache, tmp_path, monkeypatch):
    folder = tmp_path / "squeeze_jax" / "processor"
    folder.mkdir(parents=True)
    for age in range(4):
        (folder / str(age)).write_bytes(bytes(100))
        os.utime(folder / str(age), (0, 1000 - age))
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", 250)
    compilation_cache.enable()
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1"]
