"""The fleet in virtual time, and emulated nodes that keep its timing in real time."""

from importlib.util import find_spec

if find_spec("gymnasium"):  # of the extra `simulator`; emulated nodes do without.
    from envs.registration import register

    register()
