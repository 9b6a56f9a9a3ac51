"""The hot paths: raw ASGI handlers in front of FastAPI, which keeps everything else."""
