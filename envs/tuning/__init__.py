"""``ccr tune``: the few weights of a policy, fitted to training scenarios and confirmed on seeds they never saw."""
