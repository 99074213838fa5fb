"""Load tests of a running server: ``python -m loadtest``, or locust with loadtest/locustfile.py."""
