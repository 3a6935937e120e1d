"""What a person sees in a terminal: lines that fit, bars, and nothing of them where stderr is a file."""

import fcntl
import logging
import os
import pty
import re
import struct
import sys
import termios
import threading

import pytest
from conftest import configure
from rich.cells import cell_len

from squeeze_jax import commands, console
from squeeze_jax.errors import InputError
from squeeze_jax.training import trainer

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A pseudo-terminal in the place of stderr."""

    def __init__(self, columns, monkeypatch):
        self._reader, writer = pty.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        for name, value in (("COLUMNS", str(columns)), ("TERM", "xterm"), ("LANG", "C.UTF-8")):
            monkeypatch.setenv(name, value)
        self._file = os.fdopen(writer, "w", encoding="utf-8")
        monkeypatch.setattr(sys, "stderr", self._file)
        self._read = []
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self):
        while True:
            try:
                self._read.append(os.read(self._reader, 2**16))
            except OSError:  # all writers have closed it
                return

    def lines(self):
        """All lines that were ever on the screen, those of bars too."""
        self._file.close()
        self._thread.join(timeout=30)
        os.close(self._reader)
        text = CODES.sub("", b"".join(self._read).decode())
        return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def test_no_line_of_a_run_wraps(tmp_path, data_dir, monkeypatch):
    terminal = Terminal(80, monkeypatch)
    monkeypatch.chdir(tmp_path)
    config = configure(data_dir, **{"train.duration": "6 steps", "run.log_every": "3 steps", "model.base_filters": 16})
    trainer.train_and_evaluate(config, "run")
    lines = terminal.lines()
    assert max(map(cell_len, lines)) <= 80
    clock = re.compile(r"\d\d:\d\d:\d\d ")
    text = "\n".join(line for line in lines if not re.match("training|[^ ] ", line))
    text = re.sub(r"warning: .*(\n {9}.*)+", "warning", text)  # which may be long
    assert text and not [line for line in text.splitlines() if not clock.match(line)], "rests of wrapped lines"
    bars = [line for line in lines if line.startswith("training")]
    assert re.search(r" \d+/\d+ +[\d.]+ images/s, \d:\d\d:\d\d left", bars[-1])
    assert not any(re.search(r"\d{4}-\d\d-\d\d|INFO", line) for line in lines)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d I ", (tmp_path / "run" / "log.txt").read_text())


def test_warnings_and_errors_say_so_and_long_lines_continue_below_themselves(monkeypatch):
    terminal = Terminal(80, monkeypatch)
    with console.logging_to(None):
        logging.getLogger("squeeze_jax.x").warning("word " * 40)
        logging.getLogger("squeeze_jax.x").error("[red]as it is[/red]")
        logging.getLogger("squeeze_jax.x").info("a, b", extra={"parts": ["a" * 60, "b" * 60]})
    first, second, *others = terminal.lines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning: word( word)+", first) and re.fullmatch(r" {9}word( word)+", second)
    assert others[-2][9:] == "error: [red]as it is[/red]" and others[-1][9:] == "a" * 60


def test_bars_count_items_and_nothing_is_left_of_them(monkeypatch):
    terminal = Terminal(80, monkeypatch)
    with console.doing("loading [weights]"):
        assert list(console.track(iter("abc"), "classifying", total=3)) == ["a", "b", "c"]
    text = "\n".join(terminal.lines())
    assert "loading [weights] ..." in text and re.search("classifying .* 0/3 .* left", text)
    assert not console._shown


def test_an_error_ends_the_bar(monkeypatch):
    terminal = Terminal(80, monkeypatch)

    def main():
        for _ in console.track(range(3), "classifying"):
            raise InputError("a wrong image.")

    assert commands.run(main) == 1 and not console._shown
    assert terminal.lines()[-1] == "InputError: a wrong image."


def test_a_file_gets_no_bars(capsys):
    with console.doing("loading"), console.Bar("training", 0, 3) as bar:
        bar.update(1, ["text"])
        assert list(console.track([1, 2], "classifying")) == [1, 2]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("width", "shown"), [(80, "ab, cd, ef"), (9, "ab, cd"), (1, "ab")])
def test_what_does_not_fit_is_left_out_from_the_end(width, shown):
    assert console.fitting(["ab", "cd", "ef"], width) == shown
