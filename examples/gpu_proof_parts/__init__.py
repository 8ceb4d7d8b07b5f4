"""The sections of `gpu_proof.py`."""
