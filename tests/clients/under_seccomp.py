"""Runs a command under a seccomp profile in the form that container engines take, with nothing but the kernel and a C compiler.

    python3 tests/clients/under_seccomp.py tuning/seccomp.json target/debug/tidewheel serve

Of the profile it knows what ours uses: names that are allowed, and one errno for all others.
"""

import ctypes
import json
import os
import platform
import struct
import subprocess
import sys

# linux/audit.h, linux/bpf_common.h, linux/seccomp.h, linux/prctl.h
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_AT, ARCHITECTURE_AT = 0, 4
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
SET_NO_NEW_PRIVS, SET_SECCOMP, MODE_FILTER = 38, 22, 2
X32 = 0x40000000


def numbers():
    """The system calls of this machine, by name."""
    source = "#include <sys/syscall.h>\n"
    defined = subprocess.run(["cc", "-E", "-dM", "-"], input=source, capture_output=True, text=True, check=True).stdout
    words = (line.split() for line in defined.splitlines() if line.startswith("#define __NR_"))
    return {word[1].removeprefix("__NR_"): int(word[2]) for word in words if len(word) == 3 and word[2].isdigit()}


def program(profile):
    """The filter as the kernel runs it: instructions of code, jumps if so and if not, and a value."""
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO", "only profiles that deny by default"
    known, allowed = numbers(), set()
    for rule in profile["syscalls"]:
        assert rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args"), f"not understood: {rule}"
        allowed |= {known[name] for name in rule["names"] if name in known}
    deny = ERRNO | profile["defaultErrnoRet"]
    filters = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (JUMP_EQUAL, 1, 0, ARCHITECTURES[platform.machine()]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        (JUMP_GREATER_EQUAL, 0, 1, X32),
        (RETURN, 0, 0, deny),
    ]
    for number in sorted(allowed):
        filters += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    return [*filters, (RETURN, 0, 0, deny)]


def load(filters):
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in filters))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(filters), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in [(SET_NO_NEW_PRIVS, 1, 0, 0, 0), (SET_SECCOMP, MODE_FILTER, header, 0, 0)]:
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        filters = program(json.load(file))
    load(filters)
    os.execvp(sys.argv[2], sys.argv[2:])
