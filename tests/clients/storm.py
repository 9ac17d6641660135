"""Everybody comes back at once: how long until the last client is served, and how many connections the kernel dropped on the way.

    cargo build
    for most in 128 4096 65535; do
      unshare --net sh -c "ip link set lo up; sysctl -qw net.core.somaxconn=$most net.ipv4.tcp_max_syn_backlog=$most;
        python3 tests/clients/storm.py target/debug/tidewheel 8000"
    done

Needs root for a network of its own, whose settings are not the machine's. The server, of one shard, is stopped while the clients
connect, as a shard is that has a long turn or only begins; then it goes on. Prints one line of JSON.
"""

import contextlib
import json
import selectors
import signal
import socket
import subprocess
import sys
import time

REQUEST = (
    b"GET /ws HTTP/1.1\r\nHost: storm\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
STOPPED_S = 0.5
DEADLINE_S = 120


def dropped():
    """Connections that this network's listening sockets had no room for."""
    with open("/proc/net/netstat", encoding="ascii") as file:
        names, values = [line.split() for line in file if line.startswith("TcpExt:")]
    return int(values[names.index("ListenOverflows")])


def storm(process, address, connections):
    before = dropped()
    selector = selectors.DefaultSelector()
    process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    for _ in range(connections):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(address)
        selector.register(client, selectors.EVENT_WRITE)
    served, kept, resumed = [], [], False
    while len(served) < connections:
        passed = time.monotonic() - begun
        assert passed < DEADLINE_S, f"{len(served)} of {connections} were served"
        if not resumed and passed > STOPPED_S:
            process.send_signal(signal.SIGCONT)
            begun, resumed = time.monotonic(), True
        for key, events in selector.select(0.05):
            if events & selectors.EVENT_WRITE:
                key.fileobj.send(REQUEST)
                selector.modify(key.fileobj, selectors.EVENT_READ)
            elif key.fileobj.recv(4096).startswith(b"HTTP/1.1 101 "):
                served.append(time.monotonic() - begun)
                selector.unregister(key.fileobj)
                kept.append(key.fileobj)
            else:
                sys.exit("a client was turned away")
    at = lambda part: round(served[int(part * (connections - 1))], 3)
    with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
        somaxconn = int(file.read())
    result = {"somaxconn": somaxconn, "connections": connections, "dropped": dropped() - before}
    return result | {"half_s": at(0.5), "most_s": at(0.99), "last_s": at(1)}


@contextlib.contextmanager
def serve(program):
    """A server of one shard, and where it is. It gets no time to end well: it may be stopped."""
    options = "serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --shards 1"
    settings = "--set auth.timeout=10m --set limits.connection_attempts=null"
    command = [program, *options.split(), *settings.split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = next(line.split()[1] for line in process.stdout if line.startswith("websocket"))
        host, port = url.removeprefix("ws://").removesuffix("/ws").split(":")
        yield process, (host, int(port))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    with serve(sys.argv[1]) as (server, at):
        print(json.dumps(storm(server, at, int(sys.argv[2]))))
