"""The system under adversity, judged from outside: `python -m tests.chaos`."""
