"""Tests mirror the rooms, file for file; run them from the project's root."""
