"""Takes in the fixtures of the test hosts."""

from .fixtures import fleet, login_key

__all__ = ["fleet", "login_key"]
