"""Fetches this side's end of the socket pair from the controller. As a program (`join.py PROGRAM …`) it
then becomes PROGRAM, with that end as descriptor 3."""

import os
import socket
import sys

SOCKET = "/run/model.sock"


def joined():
    """The end, as a blocking socket. It leads straight to the other sandbox."""
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(SOCKET)
        _, fds, _, _ = socket.recv_fds(door, 1, 1)
    if not fds:
        sys.exit("the other side did not come")
    return socket.socket(fileno=fds[0])


if __name__ == "__main__":
    end = joined().detach()
    os.dup2(end, 3, inheritable=True)
    os.execvp(sys.argv[1], sys.argv[1:])
