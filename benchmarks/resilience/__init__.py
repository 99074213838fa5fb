"""A fleet of servers under faults, restarts and a soak: which requests are lost, and what is left behind."""
