"""Turns model-registry metadata into affinity features, preloading and retraining triggers."""
