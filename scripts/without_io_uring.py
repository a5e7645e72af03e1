#!/usr/bin/env python3
"""Runs a command under a seccomp filter that refuses io_uring, as container runtimes do.

usage: without_io_uring.py COMMAND [ARGUMENT...]
"""

import ctypes
import os
import struct
import sys

# Load the number of the system call; io_uring_setup, _enter and _register are 425 to 427; else allow.
EPERM, ALLOW = 0x00050001, 0x7FFF0000
CODE = [
    (0x20, 0, 0, 0),
    (0x35, 0, 2, 425),
    (0x25, 1, 0, 427),
    (0x06, 0, 0, EPERM),
    (0x06, 0, 0, ALLOW),
]
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


class Filter(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


if len(sys.argv) < 2:
    sys.exit(__doc__.strip())
program = b"".join(struct.pack("HBBI", *line) for line in CODE)
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
    sys.exit("PR_SET_NO_NEW_PRIVS: " + os.strerror(ctypes.get_errno()))
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Filter(len(CODE), program)), 0, 0) != 0:
    sys.exit("PR_SET_SECCOMP: " + os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])
