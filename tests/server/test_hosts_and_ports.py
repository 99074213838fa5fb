"""One clear line for an address or a port that will not do; on each address that will, every service answers."""

import os
import random
import socket
import threading
import urllib.request

import numpy as np
import psutil
import pytest

from server import OptionError, PortInUseError, TritonServer
from server.__main__ import main
from server.endpoints import check_ports, free_ports, port_is_free, port_owner, resolve

HERE = "127.0.0.1"


@pytest.fixture
def listening():
    with socket.socket() as listener:
        listener.bind((HERE, 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def root(tmp_path):
    """A repository that is good enough to get to the ports."""
    (tmp_path / "model" / "1").mkdir(parents=True)
    (tmp_path / "model" / "config.pbtxt").touch()
    return tmp_path


@pytest.fixture
def names(monkeypatch):
    """names(addresses): what any host's name stands for, as this thread is told: servers are watched in others."""
    real, here = socket.getaddrinfo, threading.get_ident()

    def build(*addresses):
        found = [(socket.AF_INET6 if ":" in a else socket.AF_INET, 1, 6, "", (a, 0)) for a in addresses]

        def look_up(*arguments, **options):
            return found if threading.get_ident() == here else real(*arguments, **options)

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    return build


def test_busy_port_names_its_owner(listening):
    expected = rf"port {listening} is in use by {psutil.Process().name()} \(pid {os.getpid()}\).*--grpc-port"
    with pytest.raises(PortInUseError, match=expected):
        check_ports({"grpc": (HERE, listening)})


def test_busy_port_whose_owner_is_hidden(listening, monkeypatch):
    def denied(kind):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", denied)
    with pytest.raises(PortInUseError, match=rf"port {listening} is in use: stop it, or choose another"):
        check_ports({"http": (HERE, listening)})
    assert port_owner(listening) == ""


def test_port_of_root(monkeypatch):
    class Denied(socket.socket):
        def bind(self, address):
            raise PermissionError

    monkeypatch.setattr(socket, "socket", Denied)
    with pytest.raises(OptionError, match="port 80 needs root: choose one above 1023"):
        check_ports({"http": (HERE, 80)})


@pytest.mark.parametrize("port", [-1, 65536, 70000])
@pytest.mark.parametrize("service", ["http", "grpc", "metrics"])
def test_no_port_number(root, capsys, service, port):
    assert main(["--model-repository", str(root), f"--{service}-port", str(port)]) == 2
    expected = f"--{service}-port is {port}: choose one from 1024 to 65535, or 0 for any free one"
    assert capsys.readouterr().err == f"server: error: {expected}\n"


@pytest.mark.parametrize("metrics_host", [HERE, "localhost", "0.0.0.0"])
def test_one_port_for_two(root, metrics_host):
    (port,) = free_ports([HERE])
    with pytest.raises(OptionError, match=f"port {port} is given to both http and grpc: give each its own"):
        TritonServer(root, metrics_host=metrics_host, http_port=port, grpc_port=port).start()
    with pytest.raises(OptionError, match=f"port {port} is given to both grpc and metrics"):
        TritonServer(root, metrics_host=metrics_host, grpc_port=port, metrics_port=port).start()
    with pytest.raises(OptionError, match=f"port {port} is given to both http and metrics"):
        TritonServer(root, host="0.0.0.0", metrics_host=metrics_host, http_port=port, metrics_port=port).start()


def test_one_port_on_two_addresses():
    addresses = HERE, "127.0.0.2"
    below = range(20_000, 30_000)  # of ports that the system gives away: nobody takes one meanwhile
    port = next(port for port in below if all(port_is_free(address, port) for address in addresses))
    check_ports({"http": (addresses[0], port), "metrics": (addresses[1], port)})


def test_busy_port_of_the_metrics_own_address(root):
    with socket.socket() as listener:
        listener.bind(("127.0.0.2", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert port_is_free(HERE, port)
        with pytest.raises(PortInUseError, match=rf"port {port} is in use .*--metrics-port"):
            TritonServer(root, metrics_host="127.0.0.2", metrics_port=port).start()


def test_the_port_of_a_connection_that_has_just_ended_is_free():
    """After a server's end the side that closed first waits in TIME_WAIT."""
    with socket.create_server((HERE, 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        port = listener.getsockname()[1]
        listener.accept()[0].close()
        assert client.recv(1) == b""
    assert port_is_free(HERE, port)


def test_free_ports():
    ports = free_ports([HERE, HERE, "0.0.0.0"])
    assert len(set(ports)) == 3
    assert all(port_is_free(HERE, port) for port in ports)


def test_free_ports_are_given_to_nobody_else():
    """Linux's ephemeral ports begin at 32768, above them; and none is given twice, whatever the seed."""
    drawn = []
    for _ in range(2):
        random.seed(0)
        drawn.append(free_ports([HERE] * 3))
    assert drawn[0] != drawn[1]
    assert max(map(max, drawn)) < 32_768


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("203.0.113.7", r"host 203\.0\.113\.7 is not an address of this machine \(Cannot assign"),
        ("no.such.host.invalid", "host 'no.such.host.invalid' is not an address: use 127.0.0.1 or 0.0.0.0"),
        ("", "host '' is not an address"),
        ("a..b", "host 'a..b' is not an address"),
        ("[::1]", r"host '\[::1\]' is not an address"),
    ],
)
def test_wrong_host(root, host, message):
    with pytest.raises(OptionError, match=message):
        TritonServer(root, host=host).start()
    with pytest.raises(OptionError, match=message):
        TritonServer(root, metrics_host=host).start()


def test_a_machine_without_ipv6(names, monkeypatch):
    class OnlyIPv4(socket.socket):
        def __init__(self, family=socket.AF_INET, *rest, **options):
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *rest, **options)

    names("::1")
    monkeypatch.setattr(socket, "socket", OnlyIPv4)
    with pytest.raises(OptionError, match=r"host ::1 is not an address of this machine \(Address family not supported"):
        resolve("::1")


def test_names_become_numbers_of_ipv4_first(names):
    names("::1", "127.0.0.1", "127.0.0.2")
    assert resolve("localhost") == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "address", "warned"),
    [
        ("127.0.0.2", None, False),
        ("this-machine", "127.0.1.1", False),  # as Debian writes its own name into /etc/hosts
        ("this-machine", "0.0.0.0", True),
    ],
)
def test_who_is_told_that_others_reach_the_server(tmp_path, names, capsys, host, address, warned):
    if address:
        names(address)
    assert main(["--model-repository", str(tmp_path / "none"), "--host", host]) == 1
    assert (f"warning: {host} is reachable from other machines" in capsys.readouterr().err) is warned


def test_a_name_is_looked_up_once(root, monkeypatch, capsys):
    asked = []
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: asked.append(host) or real(HERE, *rest, **more)
    )
    assert main(["--model-repository", str(root), "--host", "this-machine", "--http-port", "-1"]) == 2
    assert asked.count("this-machine") == 1
    assert "--http-port is -1" in capsys.readouterr().err


def has_ipv6():
    try:
        resolve("::1")
    except OptionError:
        return False
    return True


@pytest.mark.server
@pytest.mark.parametrize(
    ("host", "metrics_host", "addresses"),
    [
        ("localhost", "localhost", ("127.0.0.1", "127.0.0.1")),
        ("::1", "127.0.0.1", ("[::1]", "127.0.0.1")),
        ("127.0.0.1", "::1", ("127.0.0.1", "[::1]")),
        ("::", "::1", ("[::1]", "[::1]")),
    ],
)
def test_each_service_answers_there(light_repository, sleep, host, metrics_host, addresses):
    """tritonserver itself, told localhost or ::1, says that it listens and does so on 255.255.255.255."""
    import tritonclient.http as triton_http

    if ":" in host + metrics_host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with TritonServer(light_repository, host=host, metrics_host=metrics_host) as server:
        urls = [server.http_url, server.grpc_url, server.metrics_url]
        assert [url.rpartition(":")[0] for url in urls] == [addresses[0], addresses[0], addresses[1]]
        assert sleep(server.grpc_url, 0.0) == 0.0
        with triton_http.InferenceServerClient(server.http_url) as client:
            tensor = triton_http.InferInput("seconds", [1, 1], "FP32")
            tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
            assert client.infer("sleepy", [tensor]).as_numpy("slept")[0, 0] == 0
        with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
            assert b"nv_inference_count" in answer.read()
