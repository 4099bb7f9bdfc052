"""The cache of compiled programs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.projects import client, fbp_run, write_config


def test_compiled_programs_are_kept_by_processor_and_threads(tmp_path):
    """JAX's own key does not know the number of threads, by which the compiler cuts loops."""
    words = (
        "import jax; "
        "from fbp.experiment.runner.jax_setup import _enable_compilation_cache as on; on(); "
    )
    words += "print(jax.config.jax_compilation_cache_dir)"

    def folder(**variables):
        environment = (
            os.environ
            | {"XDG_CACHE_HOME": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": "true"}
            | variables
        )
        return subprocess.run(
            [sys.executable, "-c", words],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    one, two = folder(PJRT_NPROC="1"), folder(PJRT_NPROC="2")
    assert Path(one).parent == Path(two).parent == tmp_path / "fbp"
    assert one != two
    assert folder(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own")) == str(tmp_path / "own")
    assert folder(JAX_ENABLE_COMPILATION_CACHE="false") == "None"


@pytest.mark.slow
def test_a_second_run_takes_its_programs_from_the_cache_and_ends_in_the_same_bits(
    project, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    write_config(project)
    programs = []
    for _ in range(2):
        fbp_run("small.toml")
        programs.append(sorted((tmp_path / "cache" / "fbp").glob("*/*-cache")))
    assert programs[0]
    assert programs[0] == programs[1]
    found = client(project)
    runs = found.search_runs([found.get_experiment_by_name("small").experiment_id])
    assert len({run.data.tags["fbp.params_digest"] for run in runs}) == 1
    for program in programs[0]:  # a cache that was cut off by a full disk or a kill is only slow
        program.write_bytes(program.read_bytes()[:100])
    fbp_run("small.toml")
