"""What a fleet of servers survives: faults under load, restarts and a soak, with what is lost and what is left over."""
