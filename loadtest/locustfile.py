"""The file that the locust command reads.

    locust -f loadtest/locustfile.py --headless -u 4 -r 4 -t 10s --host 127.0.0.1:8000
    locust -f loadtest/locustfile.py --headless --shape step --rate 40 --seconds 60 --report report.html

`--host` is the HTTP address; `--grpc-host` the gRPC one where it is not port 8001 of the same host. One protocol only:
write GrpcClassifierUser or HttpClassifierUser after the options. Without --shape and --rate the load is locust's own
(-u, -r, -t, or its web page). Exit status: 1 where a request failed; with --slo, where an objective was missed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the locust command looks beside this file only

from loadtest.hooks import install
from loadtest.users import GrpcClassifierUser, HttpClassifierUser

__all__ = ["GrpcClassifierUser", "HttpClassifierUser"]

install()
