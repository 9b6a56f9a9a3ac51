"""The fleet in virtual time, compiled: the same rules as the readable reference beside it, held equal by tests."""
