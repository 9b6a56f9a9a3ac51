"""Drills in virtual time: something drifts, or somebody lies, and it is measured what becomes of the traffic.

``ccr drill`` runs them; docs/drills.md has the rules and the figures.
"""
