"""``ccr evaluate``: policies compared on the same arrivals, with intervals that a sceptic accepts."""
