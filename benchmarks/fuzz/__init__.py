"""Hostile input: seeded mutations of real images, HTTP requests and gRPC messages, against the real tritonserver."""
