"""What a connection holds in the kernel whose client sends and is not read from, or is sent to and does not read.

    cargo build
    for sizes in '4096 131072 6291456' '4096 16384 4194304'; do
      unshare --net sh -c "ip link set lo up; sysctl -qw net.ipv4.tcp_rmem='$sizes';
        python3 tests/clients/unread.py target/debug/tidewheel 500"
    done

Needs root for a network of its own, whose settings are not the machine's, and `ss` (iproute2). The server is stopped once all are
connected, and each client sends until the kernel takes nothing more. Prints one line of JSON, in bytes for each connection.
"""

import json
import re
import signal
import socket
import subprocess
import sys
import time

from storm import REQUEST, serve

SETTLE_S = 1.0


def held(port):
    """The memory of what waits to be read, in bytes, of all the server's connections."""
    sockets = subprocess.run(["ss", "-tnmH", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return [int(found) for found in re.findall(r"skmem:\(r(\d+),", sockets)]


def flood(process, address, connections):
    clients = [socket.create_connection(address) for _ in range(connections)]
    for client in clients:
        client.send(REQUEST)
        assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
    process.send_signal(signal.SIGSTOP)
    chunk = bytes(65536)
    for client in clients:
        client.setblocking(False)
        try:
            while True:
                client.send(chunk)
        except BlockingIOError:
            pass
    time.sleep(SETTLE_S)
    each = held(address[1])
    assert len(each) == connections, f"{len(each)} connections"
    with open("/proc/sys/net/ipv4/tcp_rmem", encoding="ascii") as file:
        sizes = file.read().split()
    return {"tcp_rmem": " ".join(sizes), "connections": connections, "mean": sum(each) // connections, "most": max(each)}


if __name__ == "__main__":
    with serve(sys.argv[1]) as (process, address):
        print(json.dumps(flood(process, address, int(sys.argv[2]))))
