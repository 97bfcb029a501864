"""`command`: what the quickstart and the examples run."""

from pathlib import Path

import pytest

from fusejax.common.cli import UserError
from fusejax.common.commands import command


@pytest.mark.parametrize("quiet", [False, True])
def test_a_failure_is_told_with_what_the_command_said(capfd: pytest.CaptureFixture[str], quiet: bool):
    with pytest.raises(UserError, match=r"^python -m fusejax\.no_such_command failed with status 1$"):
        command("fusejax.no_such_command", "--config", "x", quiet=quiet)
    said = capfd.readouterr().err
    assert said.startswith("$ python -m fusejax.no_such_command --config x\n")
    assert "No module named fusejax.no_such_command" in said


@pytest.mark.parametrize("quiet", [False, True])
def test_only_a_quiet_command_keeps_its_progress_to_itself(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quiet: bool
):
    (tmp_path / "noisy.py").write_text("import sys; print('said', file=sys.stderr)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command("noisy", quiet=quiet)
    assert ("said\n" in capfd.readouterr().err) is not quiet
