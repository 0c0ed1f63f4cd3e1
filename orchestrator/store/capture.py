"""What a process prints, brought to its stage's log: stdout and stderr, also of C code and of child processes.

It also goes on to where it went before (on Ray, the worker's own log file), redacted on both ways, line by line: a
secret may be printed in two writes.
"""

from __future__ import annotations

import codecs
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.io.redact import redact

LONGEST_LINE = 1 << 20
"""Characters held back for the end of their line."""


@contextmanager
def captured_output(write: Callable[[str], object]) -> Iterator[None]:
    """While inside, send what this process prints to `write` and to where it went before."""
    read_end, write_end = os.pipe()
    saved = [os.dup(1), os.dup(2)]

    def pass_on(text: str) -> None:
        text = redact(text)
        os.write(saved[0], text.encode(errors="replace"))
        write(text)

    def pump() -> None:
        decoder, line = codecs.getincrementaldecoder("utf-8")(errors="replace"), ""
        while chunk := os.read(read_end, 1 << 16):
            line += decoder.decode(chunk)
            end = max(line.rfind("\n"), line.rfind("\r")) + 1
            if end or len(line) > LONGEST_LINE:
                end = end or len(line)
                pass_on(line[:end])
                line = line[end:]
        pass_on(line)

    thread = threading.Thread(target=pump, name="output", daemon=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(write_end, 1)
    os.dup2(write_end, 2)
    os.close(write_end)
    thread.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        thread.join(timeout=2)  # a child that outlives the stage may keep the pipe open
        if not thread.is_alive():
            for descriptor in (read_end, *saved):
                os.close(descriptor)
