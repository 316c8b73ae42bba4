"""Ctrl-C where Python drops exceptions."""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref

import pytest

from cli.interrupts import heeded_interrupts


class Referred:
    pass


def test_ctrl_c_in_a_callback_that_drops_it_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    referred = [Referred()]
    reference = weakref.ref(referred[0], lambda _: os.kill(os.getpid(), signal.SIGINT))

    @heeded_interrupts()
    def command() -> None:
        referred.clear()
        time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        command()
    assert reference() is None
    assert capsys.readouterr().err == ""


def test_what_else_python_drops_goes_where_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: printed.append(dropped.exc_type))
    referred = Referred()
    reference = weakref.ref(referred, lambda _: 1 / 0)
    with heeded_interrupts():
        del referred
    assert reference() is None
    assert printed == [ZeroDivisionError]
