"""A full disk, and a store that cannot be read: one line, with the command that goes on."""

import pytest

from tests.attacks.damage import run_with_checkpoints
from tests.projects import said, write_config


@pytest.mark.promise("full-disk-told")
@pytest.mark.parametrize("kind", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_names_the_command_that_goes_on(warm, monkeypatch, kind):
    import errno

    from fbp.experiment.runner import loop

    def full(*_):
        raise OSError(getattr(errno, kind), "No space left on device", "journal.jsonl")

    monkeypatch.setattr(loop.Loop, "train", full)
    output = said("run", write_config(warm), status=1)
    (folder,) = (warm / "mlruns" / "runs").iterdir()
    assert (
        f"No space left on device; free some space, then go on with: fbp resume {folder.name}"
        in (output)
    )


@pytest.mark.promise("full-disk-told")
@pytest.mark.parametrize(
    "uri", ["sqlite:////nowhere/x.db", "postgresql://u:pass@127.0.0.1:1/x", "http://127.0.0.1:9"]
)
def test_a_store_that_cannot_be_read_leads_to_the_run_folders(project, uri):
    run_with_checkpoints(project / "mlruns" / "runs" / "small-0000").close()
    output = said("runs", "--tracking-uri", uri, status=2)
    assert "the run folders of this project can be read with: --tracking-uri folders" in output
    assert "small-0000" in said("show", "small-0000", "--tracking-uri", "folders")
