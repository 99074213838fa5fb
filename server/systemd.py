"""Notifies systemd if a unit of Type=notify started this process."""

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send `state`, such as READY=1 (sd_notify(3)), to systemd; do nothing if it does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        connection.sendall(state.encode())
