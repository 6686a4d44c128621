"""Runs commands as a shell would, without waiting for the imports of each: forks of an interpreter that has made them.

A server is an interpreter of its own, started once: it imports the libraries, and then forks for each command that it
is asked to run. Nothing but the fork is special: a command has its own folder, environment, output and exit code, is
and may end in any way. What libraries print, and read from the environment, when they are
imported is the server's.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

BIN = Path(sys.executable).parent
LIBRARIES = [
    "cv2",
    "FrEIA",
    "jsonargparse",
    "kornia",
    "lightning.pytorch.cli",
    "matplotlib.pyplot",
    "omegaconf",
    "onnx",
]
LIBRARIES += ["openvino", "pandas", "rich", "skimage", "sklearn.cluster", "timm", "torchmetrics.image"]
LIBRARIES += ["torchvision.transforms.v2"]
PROGRAMS = {"anomalib": "anomalib.cli.cli", "anomalib-ccl": "anomalib_ccl.cli"}
OURS = ["anomalib.data", "anomalib.models", "anomalib.engine", *PROGRAMS.values(), "anomalib_ccl.lightning_model"]


class Forked:
    """The client: starts the servers and has them run commands.

    There are two, of which the second is a fork of the first: in one, the libraries alone are imported; in the other
    anomalib and this package too.
    """

    def __init__(self) -> None:
        mine, theirs = zip(*(socket.socketpair() for _ in range(2)), strict=True)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the server
        # A fork has one thread, whatever its parent has; and the hook waits until a command is run.
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PYTHONIOENCODING": "utf-8",
            "ANOMALIB_CCL_DISABLE": "1",
        }
        handles = [end.fileno() for end in theirs]
        self._server = subprocess.Popen(
            [sys.executable, __file__, *map(str, handles)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=handles,
            start_new_session=True,
        )
        for end in theirs:
            end.close()
        self._fresh, self._warm = mine

    def run(
        self,
        *words: str | Path,
        cwd: str | Path,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
        fresh: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command and wait for its end.

        Args:
            *words: ``anomalib``, ``anomalib-ccl`` or ``python`` (then ``-c CODE``, ``-m MODULE`` or a script), and what
                follows.
            cwd: The folder to run it in.
            env: Variables of its environment besides those of this process.
            timeout: Seconds after which it is killed.
            fresh: Whether to run it where neither anomalib nor this package have been imported. The programs then
                import this package first, as the start of an interpreter does; ``python`` does not.

        Returns:
            What it printed, and its exit code, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: If it was killed.
        """
        arguments = [str(word) for word in words]
        request = {"words": arguments, "cwd": str(cwd), "env": {**os.environ, **(env or {})}, "fresh": fresh}
        channel = self._fresh if fresh else self._warm
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with suppress(BrokenPipeError):  # where the server has ended, the answer says why
                socket.send_fds(channel, [b"?"], [out.fileno(), err.fileno()])
                channel.sendall(json.dumps(request).encode() + b"\n")
            process = int(self._answer(channel))
            channel.settimeout(timeout)
            try:
                code = int(self._answer(channel))
            except TimeoutError as error:
                os.killpg(process, signal.SIGKILL)
                channel.settimeout(None)
                self._answer(channel)
                raise subprocess.TimeoutExpired(arguments, timeout, _text(out), _text(err)) from error
            finally:
                channel.settimeout(None)
            return subprocess.CompletedProcess(arguments, code, _text(out), _text(err))

    def close(self) -> None:
        """End the servers."""
        self._fresh.close()
        self._warm.close()
        self._server.wait()
        self._log.close()

    def _answer(self, channel: socket.socket) -> bytes:
        line = _line(channel)
        if not line:
            self._log.seek(0)
            msg = f"the server has ended:\n{self._log.read()}"
            raise RuntimeError(msg)
        return line


def _text(file: tempfile._TemporaryFileWrapper) -> str:
    file.seek(0)
    return file.read().decode()


def _line(channel: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = channel.recv(1)
        if not part:
            return b""
        line += part
    return line


def serve() -> tuple[list[str], bool]:
    """Import, and fork until there are no more commands; return, in each fork, what to run, and whether afresh."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "anomalib_ccl"]:
        del sys.modules[name]
    del os.environ["ANOMALIB_CCL_DISABLE"]
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would start a thread
    fresh, warm = (socket.socket(fileno=int(handle)) for handle in sys.argv[1:])
    for name in LIBRARIES:
        import_module(name)
    if os.fork() == 0:
        fresh.close()
        import_module("anomalib_ccl")
        for name in OURS:
            import_module(name)
        channel = warm
    else:
        warm.close()
        channel = fresh
    gc.freeze()  # or else the first collection of a fork would copy all memory
    while True:
        _, handles, *_ = socket.recv_fds(channel, 1, 2)
        line = _line(channel)
        if not line:
            sys.stdout.flush()
            os._exit(0)
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            channel.close()
            return _become(request, handles)
        for handle in handles:
            os.close(handle)
        channel.sendall(b"%d\n" % child)
        _, status = os.waitpid(child, 0)
        channel.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(request: dict, handles: list[int]) -> tuple[list[str], bool]:
    """Give a fork the folder, the environment and the output of a process of its own."""
    os.setsid()
    for handle, number in zip(handles, (1, 2), strict=True):
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    random.seed()
    return request["words"], request["fresh"]


def run_here(words: list[str], fresh: bool) -> None:
    """Do what the words say, as the interpreter that a shell starts with them."""
    program, *rest = words
    if program in PROGRAMS:
        if fresh:
            import_module("anomalib_ccl")
        sys.argv = [str(BIN / program), *rest]
        sys.path[0] = str(BIN)
        sys.exit(import_module(PROGRAMS[program]).main())
    assert program == "python", program
    if rest[0] == "-c":
        sys.argv = ["-c", *rest[2:]]
        sys.path[0] = ""
        exec(compile(rest[1], "<string>", "exec"), {"__name__": "__main__"})
    elif rest[0] == "-m":
        sys.argv = rest[1:]
        sys.path[0] = ""
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = rest
        sys.path[0] = str(Path(rest[0]).resolve().parent)
        runpy.run_path(rest[0], run_name="__main__")


def end(code: object) -> NoReturn:
    """End as an interpreter does, but without taking apart all that was ever imported, which takes seconds."""
    threading._shutdown()  # as an interpreter does first
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if code is None else code & 0xFF if isinstance(code, int) else 1)


def main() -> None:
    """Serve; and in each fork, run what is asked for, to its end."""
    words, fresh = serve()
    try:
        run_here(words, fresh)
    except SystemExit as error:
        end(error.code)
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        end(130)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        end(1)
    end(0)


if __name__ == "__main__":
    main()
