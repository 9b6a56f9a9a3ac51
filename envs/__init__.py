"""The fleet in virtual time, and emulated nodes that keep its timing in real time."""
