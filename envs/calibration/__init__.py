"""Constants of the timing model, fitted to what was measured: step profiles, recorded traces, loads."""
