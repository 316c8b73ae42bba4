"""Progress for people at a terminal and for those who read a log."""

from __future__ import annotations

import pytest

from hls_foundry.progress import LINE_EVERY_S, progress_bar


def test_a_log_gets_a_line_now_and_then_and_none_for_what_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with progress_bar("chips", clock=lambda: now) as progress:
        for done in range(1, 11):
            now += LINE_EVERY_S / 4
            progress(done, 10)
    assert capsys.readouterr() == ("", "chips       4 of 10\nchips       8 of 10\n")


def test_a_terminal_gets_a_bar_that_goes_when_it_is_done(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar("chips") as progress:
        progress(3, 10)
    out, told = capsys.readouterr()
    assert out == ""
    assert "chips" in told
    assert "3/10" in told
