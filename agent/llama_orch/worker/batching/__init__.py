"""All slots in one step after another: who gets one, and what each step computes."""
