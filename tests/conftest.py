"""What every test needs: Ctrl-C as a terminal gives it, and no verdict by the clock.

A shell starts background jobs with SIGINT ignored, and every process below inherits that. Hypothesis fails what takes
longer than it finds usual, which on a busy machine anything may.
"""

import signal

from hypothesis import HealthCheck, settings

signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
