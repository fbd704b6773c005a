"""Runs inside the sandbox, alone with the skill: sets its limits, gives up its rights, calls one function.

Stands by itself: it sees the standard library and the skill, and nothing of Penstock. Reads a job from stdin and
writes one line of JSON to what was stdout; what the skill prints goes to stderr.
"""

import contextlib
import importlib.util
import json
import os
import resource
import sys
import threading


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, value))


def _forward(port_path: str) -> int:
    """The proxy's socket as a port of this machine within the machine: what HTTP libraries can use."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(port_path)
            for pair in ((client, upstream), (upstream, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    limits = job["limits"]
    if job["user"]:
        os.setgroups([])
        os.setresgid(job["user"], job["user"], job["user"])
        os.setresuid(job["user"], job["user"], job["user"])
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, 128)
    _limit(resource.RLIMIT_FSIZE, limits["scratch"])
    _limit(resource.RLIMIT_CPU, limits["cpu"])
    _limit(resource.RLIMIT_AS, limits["memory"])
    _limit(resource.RLIMIT_NPROC, limits["processes"])
    if job["proxy"]:
        url = f"http://127.0.0.1:{_forward(job['proxy'])}"
        os.environ |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), url)
    os.chdir("/skill")
    sys.path.insert(0, "/skill")
    try:
        spec = importlib.util.spec_from_file_location("skill", "/skill/" + job["entry"])
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        sys.modules["skill"] = module
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        function = getattr(module, job["operation"], None)
        if not callable(function):
            raise LookupError(f"{job['entry']} has no function {job['operation']}")
        given = job["input"]
        result = function(**given) if isinstance(given, dict) else function(given)
        text = json.dumps({"output": result}, allow_nan=False)
    except BaseException as error:
        text = json.dumps({"error": f"{type(error).__name__}: {error}"[:500]})
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    answer.write(text)
    answer.flush()
    os._exit(0)  # whatever the skill left running is not waited for


if __name__ == "__main__":
    main()
