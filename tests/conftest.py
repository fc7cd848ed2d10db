"""What all tests share: the profiles of hypothesis, and how long OpenMP's threads spin."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

import whispercore  # noqa: F401 - before PyTorch, which reads what it sets in the environment

# The profile "ci" is the default everywhere, so that every machine runs the same examples: no randomness, no time
# limits. HYPOTHESIS_PROFILE=thorough tries ten times as many, random ones. A test that needs fewer or more than the
# profile's number scales it: @settings(max_examples=settings().max_examples // 4).
settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
