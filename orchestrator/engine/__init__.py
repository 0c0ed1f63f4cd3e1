"""Plan to results: ready queue, placement on Ray, warm workers, retries, cancel, leases, live view."""
