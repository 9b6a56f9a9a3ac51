"""The router: drives the core in real time, between clients and GPU nodes."""
