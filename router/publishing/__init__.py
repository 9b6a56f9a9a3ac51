"""Weights on their way from a learner to the routers: published under a lease, followed by version, never a mix."""
