"""A system of several processes while its parts fail, judged from outside: `python -m tests.chaos`."""
