"""Everything that needs a GPU, in one call of at most eight minutes: `make gpu-check`."""

SKIPPED = 77  # exit status of a part that cannot run here; its last line gives the reason
