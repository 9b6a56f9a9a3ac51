"""Traces of what the router did: numbers, enumerations and hashed ids, written beside the serving and never by it."""
