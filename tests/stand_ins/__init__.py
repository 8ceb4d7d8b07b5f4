"""Stand-ins for libraries of NVIDIA that cannot be installed here, with the signatures of the real ones.

In a test they are passed as modules; with this folder on PYTHONPATH, whole processes take them for the real ones.
"""
