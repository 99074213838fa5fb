"""What systemd is told, where a unit of Type=notify has started this process."""

import contextlib
import os
import socket


def notify(state: str) -> None:
    """`state` as sd_notify(3) has it, such as READY=1; does nothing where systemd does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        connection.sendall(state.encode())
