"""The study `light`, and reports of it without kernels."""

from fixtures.reporting import in_process, study, write_study  # noqa: F401 - fixtures
