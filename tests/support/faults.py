"""Processes that die, and system calls that fail, at a chosen moment."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Callable, Iterator

from cmsolvers.training.checkpoints import disk

CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


def forked(function: Callable[[], object]) -> int:
    """The process id of a child that runs a function and ends: 0 if it returned, 1 if it raised."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Wait for a child; its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def before_each_call(hook: Callable[[str, tuple[object, ...]], object]) -> Iterator[None]:
    """Call `hook(name, arguments)` before each system call that changes files or opens one."""
    with contextlib.ExitStack() as stack:
        for owner, name in [*((os, name) for name in CALLS), (disk, "_exchange")]:
            original = getattr(owner, name)

            def call(*args, _original=original, _name=name, **options):
                hook(_name, args)
                return _original(*args, **options)

            setattr(owner, name, call)
            stack.callback(setattr, owner, name, original)
        yield


def killed_at_call(function: Callable[[], object], number: int) -> bool:
    """Run a function in a child that is killed at its call of this number; False: it made fewer."""
    left = number

    def hook(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        with before_each_call(hook):
            function()

    status = ended(forked(run))
    assert status in (0, -signal.SIGKILL)
    return status != 0


class Failing:
    """A hook: the writing call of this number raises; `happened` tells whether there was one."""

    def __init__(self, number: int, error: BaseException) -> None:
        self.left, self.error, self.happened = number, error, False

    def __call__(self, name: str, args: tuple[object, ...]) -> None:
        if name in ("unlink", "rmdir"):  # what frees room on a full disk
            return
        if name == "open" and not (len(args) > 1 and int(str(args[1])) & os.O_CREAT):
            return
        self.left -= 1
        if self.left == 0:
            self.happened = True
            raise self.error
