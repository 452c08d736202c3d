"""`munit-fast bench` from measuring to the report."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from munit_fast.cli import app
from munit_fast.io.atomic import FileWriteError


def test_the_command(tmp_path: Path) -> None:
    call = CliRunner().invoke
    listed = call(app, ["bench", "--list", "--set", "smoke", "--level", "block"], catch_exceptions=False)
    assert (
        listed.output.splitlines()[0] == "block residual block training 1×8×16² fp32"
        and len(listed.output.splitlines()) == 4
    )
    output = tmp_path / "rows.jsonl"
    quick = ["--rounds", "2", "--turn", "0", "--no-compile", "--device", "cpu"]
    done = call(app, ["bench", "--set", "smoke", "--name", "in 1 style", *quick, "--output", str(output)])
    assert done.exit_code == 0 and re.search(rf"\b\d+ rows .*{re.escape(str(output))}", " ".join(done.output.split()))
    again = call(app, ["bench", "--set", "smoke", "--name", "in 1 style", *quick, "--output", str(output), "--missing"])
    assert again.exit_code == 0 and re.search("^0 rows", again.output, re.MULTILINE)
    nowhere = call(app, ["bench", "--set", "smoke", *quick, "--output", str(tmp_path)])
    assert nowhere.exit_code == 1 and isinstance(nowhere.exception, FileWriteError)
    readme = tmp_path / "speed.md"
    written = ["--results", str(output), "--readme", str(readme), "--pages", str(tmp_path / "pages")]
    assert call(app, ["bench", "--report", *written, "--no-summary"], catch_exceptions=False).exit_code == 0
    assert not readme.exists()
    assert call(app, ["bench", "--report", *written], catch_exceptions=False).exit_code == 0
    [(_, link)] = re.findall(r"[^!]\[(.+?)\]\((.+?)\)", readme.read_text())
    text = (tmp_path / link).read_text()
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert pictures and all((tmp_path / "pages" / name).stat().st_size > 5000 for name in pictures)
    assert "**Translation in 1 style**" in text
    readme.write_text("no marks")
    failed = call(app, ["bench", "--report", *written])
    assert failed.exit_code == 1 and str(readme) in str(failed.exception)
    compared = call(app, ["bench", "--compare", str(output), "--results", str(output)], catch_exceptions=False)
    assert re.search(r"\b0 faster.*\b0 slower", compared.output)
    unknown = call(app, ["bench", "--compare", "no-such-revision", "--results", str(output)])
    assert "no-such-revision" in str(unknown.exception)
