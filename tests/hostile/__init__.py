"""Attacks on running services: what they cost before they were mended, and what they may cost now."""
