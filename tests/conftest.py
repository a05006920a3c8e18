"""Settings of all tests: on a busy machine they take longer, and nothing fails for that."""

from hypothesis import HealthCheck, settings

settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")
