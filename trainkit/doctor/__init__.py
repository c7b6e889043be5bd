"""What works here and what would break a job, before it burns an hour."""

from trainkit.doctor.finding import Check, Finding, Question, Status

__all__ = ["Check", "Finding", "Question", "Status"]
